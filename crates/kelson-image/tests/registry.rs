//! Authentication, mirrors and `hosts.toml`, and who gets to see which secret.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may stop at once and say why"
)]

mod common;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::{Act, Fixture, Node, Seen, chain, hello, id, is_root, large, registry};
use kelson_image::serve::Registry;
use kelson_image::{AuthConfig, Credentials, PullError};
use kelson_snapshot::Digest;

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn unauthorized(challenges: &[String]) -> Act {
    let headers = challenges
        .iter()
        .map(|text| ("www-authenticate", text.clone()))
        .collect();
    Act::Body(401, headers, Bytes::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_authentication() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let fixture = Fixture::start(registry(&image), |seen, _| {
        if seen.header("authorization") == Some(&basic("me", "hunter2")) {
            Act::Serve
        } else {
            unauthorized(&["Negotiate".into(), "Basic realm=\"x\"".into()])
        }
    })
    .await;
    let node = Node::new();
    let name = fixture.image("hello");
    let error = node.pull(&name).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    let error = node
        .pull_as(&name, Credentials::basic("me", "wrong-secret"))
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    let shown = format!("{} {error:?}", chain(&error));
    assert!(!shown.contains("wrong-secret") && !shown.contains(&basic("me", "wrong-secret")[6..]));
    let elsewhere = AuthConfig {
        username: "me".into(),
        password: "hunter2".into(),
        server_address: "quay.io".into(),
        ..AuthConfig::default()
    };
    let elsewhere = Credentials::from_auth_config(&elsewhere).unwrap();
    assert!(
        node.pull_as(&name, elsewhere).await.is_err(),
        "those are for another registry"
    );
    node.pull_as(&name, Credentials::basic("me", "hunter2"))
        .await
        .unwrap();
}

/// A registry and its token server at one address. Tokens are named by what was shown for them.
async fn token_registry(image: &kelson_image::layout::BuiltImage, life: &'static str) -> Fixture {
    Fixture::start(registry(image), move |seen: &Seen, _| {
        let host = seen.header("host").unwrap();
        if seen.path == "/token" {
            let form = String::from_utf8(seen.body.to_vec()).unwrap();
            let fields = if form.is_empty() { &seen.query } else { &form };
            let scoped = fields.contains("scope=repository%3Ahello%3Apull")
                && fields.contains("service=the%20service");
            let shown = match seen.header("authorization") {
                Some(value) if value == basic("me", "pw") => "by-password",
                None if form.contains("grant_type=refresh_token")
                    && form.contains("refresh_token=refresh%2Fme") =>
                {
                    "by-refresh"
                }
                None if form.is_empty() => "anonymous",
                _ => return Act::Status(401, None),
            };
            if !scoped {
                return Act::Status(400, None);
            }
            let field = if form.is_empty() {
                "token"
            } else {
                "access_token"
            };
            let body = format!("{{\"{field}\":\"{shown}\",\"expires_in\":{life}}}");
            return Act::Body(200, Vec::new(), body.into());
        }
        match seen.header("authorization") {
            Some("Bearer by-password" | "Bearer by-refresh" | "Bearer given") => Act::Serve,
            _ => unauthorized(&[
                "Basic realm=\"no\"".into(),
                format!(
                    "Bearer realm=\"http://{host}/token\",service=\"the service\",\
                     scope=\"repository:hello:pull\""
                ),
            ]),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn bearer_tokens() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let token = |identity_token: &str, registry_token: &str| {
        let (identity_token, registry_token) = (identity_token.into(), registry_token.into());
        let config = AuthConfig {
            identity_token,
            registry_token,
            ..AuthConfig::default()
        };
        Credentials::from_auth_config(&config).unwrap()
    };
    for (credentials, requests) in [
        (Credentials::basic("me", "pw"), 1),
        (token("refresh/me", ""), 1),
        (token("", "given"), 0),
    ] {
        let fixture = token_registry(&image, "300").await;
        let node = Node::new();
        node.pull_as(&fixture.image("hello"), credentials)
            .await
            .unwrap();
        let tokens = fixture
            .seen()
            .iter()
            .filter(|seen| seen.path == "/token")
            .count();
        assert_eq!(tokens, requests, "one token serves the whole pull");
    }
    let fixture = token_registry(&image, "300").await;
    let node = Node::new();
    for credentials in [
        Credentials::anonymous(),
        Credentials::basic("me", "no"),
        token("", "no"),
    ] {
        let error = node
            .pull_as(&fixture.image("hello"), credentials)
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                PullError::Unauthorized { .. } | PullError::RegistryUnavailable { .. }
            ),
            "{}",
            chain(&error)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_with_the_registry() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let layer = Digest::of(&image.layer).to_string();
    let storage = Fixture::start(registry(&image), |_, _| Act::Serve).await;
    let target = format!(
        "http://{}/v2/hello/blobs/{layer}?signature=s3cret",
        storage.address
    );
    let fixture = Fixture::start(registry(&image), move |seen, _| {
        if seen.header("authorization") != Some(&basic("me", "pw")) {
            unauthorized(&["Basic".into()])
        } else if seen.path.ends_with(&layer) {
            Act::Status(307, Some(("location", target.clone())))
        } else {
            Act::Serve
        }
    })
    .await;
    let node = Node::new();
    node.pull_as(&fixture.image("hello"), Credentials::basic("me", "pw"))
        .await
        .unwrap();
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("authorization"), None);

    // A storage that asks for credentials does not get them, whatever realm it names.
    let evil = Fixture::start(Registry::new(), |seen, _| {
        unauthorized(&[
            "Basic".into(),
            format!(
                "Bearer realm=\"http://{}/token\"",
                seen.header("host").unwrap()
            ),
        ])
    })
    .await;
    let target = format!("http://{}/x?signature=s3cret", evil.address);
    let fixture = Fixture::start(registry(&image), move |seen, _| {
        if seen.header("authorization") != Some(&basic("me", "pw")) {
            unauthorized(&["Basic".into()])
        } else if seen.is_blob() {
            Act::Status(307, Some(("location", target.clone())))
        } else {
            Act::Serve
        }
    })
    .await;
    let node = Node::new();
    let error = node
        .pull_as(&fixture.image("hello"), Credentials::basic("me", "pw"))
        .await
        .unwrap_err();
    let shown = format!("{} {error:?}", chain(&error));
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(
        evil.seen()
            .iter()
            .all(|seen| seen.header("authorization").is_none())
    );
    assert!(evil.seen().iter().all(|seen| seen.path != "/token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_tried_in_order() {
    if !is_root() {
        return;
    }
    let image = large(200_000);
    let (layer, other) = (Digest::of(&image.layer).to_string(), large(100_000));
    let dead = {
        let fixture = Fixture::start(Registry::new(), |_, _| Act::Serve).await;
        fixture.address
    };
    // A mirror that asks for credentials gets none: they are the registry's.
    let empty = Fixture::start(Registry::new(), |_, _| unauthorized(&["Basic".into()])).await;
    let mut padded = other.layer.to_vec();
    padded.resize(image.layer.len(), 0);
    let wrong = layer.clone();
    let liar = Fixture::start(registry(&image), move |seen, _| {
        if seen.path.ends_with(&wrong) {
            Act::Instead(padded.clone().into())
        } else {
            Act::Serve
        }
    })
    .await;
    let origin = Fixture::start(registry(&image), |_, _| Act::Serve).await;
    let node = Node::new();
    node.hosts(
        "r.example:5000",
        &format!(
            r#"
            server = "http://{}"
            [host."http://{dead}"]
            [host."http://{}"]
            [host."http://{}"]
              capabilities = ["pull"]
              [host."http://{}".header]
                x-mirror = "secret"
            "#,
            origin.address, empty.address, liar.address, liar.address,
        ),
    );
    let credentials = Credentials::basic("me", "pw");
    let pulled = node
        .pull_as("r.example:5000/hello", credentials)
        .await
        .unwrap();
    assert_eq!(pulled, id(&image));
    assert_eq!(node.images.list()[0].tags, ["r.example:5000/hello:latest"]);
    assert!(
        empty
            .seen()
            .iter()
            .all(|seen| seen.query == "ns=r.example%3A5000")
    );
    assert!(!empty.seen().is_empty());
    assert!(
        empty
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_none())
    );
    let seen = liar.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.header("x-mirror") == Some("secret"))
    );
    assert!(
        seen.iter().all(|seen| seen.path.contains("sha256")),
        "it cannot resolve tags"
    );
    assert!(
        seen.iter().any(|seen| seen.path.ends_with(&layer)),
        "it was asked for the layer"
    );
    assert!(
        origin.seen().iter().any(|seen| seen.path.ends_with(&layer)),
        "and then the registry"
    );
    assert!(
        origin
            .seen()
            .iter()
            .all(|seen| seen.header("x-mirror").is_none())
    );

    // The file is read again on each pull.
    node.hosts("r.example:5000", &format!("server = \"http://{dead}\""));
    node.images.remove("r.example:5000/hello").unwrap();
    let error = node.pull("r.example:5000/hello").await.unwrap_err();
    assert!(
        matches!(error, PullError::RegistryUnavailable { .. }),
        "{error}"
    );
    node.hosts("r.example:5000", "server = [1]");
    let error = node.pull("r.example:5000/hello").await.unwrap_err();
    assert!(chain(&error).contains("hosts.toml:1"), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_goes_on_where_one_broke() {
    if !is_root() {
        return;
    }
    let image = large(400_000);
    let layer = Digest::of(&image.layer).to_string();
    let path = layer.clone();
    let broken = Fixture::start(registry(&image), move |seen, _| {
        if !seen.path.ends_with(&path) {
            Act::Serve
        } else if seen.header("range").is_none() {
            Act::Cut(150_000)
        } else {
            Act::Status(500, None)
        }
    })
    .await;
    let origin = Fixture::start(registry(&image), |_, _| Act::Serve).await;
    let node = Node::new();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]",
        origin.address, broken.address
    );
    node.hosts("_default", &hosts);
    node.pull("anything.example/hello").await.unwrap();
    let seen = origin.seen();
    let asked: Vec<_> = seen
        .iter()
        .filter(|seen| seen.path.ends_with(&layer))
        .collect();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("range"), Some("bytes=150000-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_may_be_overridden() {
    if !is_root() {
        return;
    }
    let image = hello("hi");
    let mut served = Registry::new();
    served.add_image("cache/hello", "latest", &image);
    let fixture = Fixture::start(served, |_, _| Act::Serve).await;
    let node = Node::new();
    let host = format!("http://{}/v2/cache", fixture.address);
    node.hosts(
        "r.example",
        &format!("[host.\"{host}\"]\noverride_path = true\ndial_timeout = \"1s\""),
    );
    let pulled = tokio::time::timeout(Duration::from_secs(10), node.pull("r.example/hello")).await;
    assert_eq!(pulled.unwrap().unwrap(), id(&image));
}
