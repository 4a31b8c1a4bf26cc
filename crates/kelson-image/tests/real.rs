//! Against Debian's docker-registry, filled by skopeo, with TLS, a private authority and client
//! certificates. Skipped where these programs are not installed.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may stop at once and say why"
)]

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Node, hello, id, is_root};
use kelson_image::PullError;
use kelson_image::layout::{BuiltImage, LayerFormat, descriptor};
use kelson_snapshot::Digest;
use serde_json::json;

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn installed(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        let found = Command::new("sh")
            .arg("-c")
            .arg(format!("command -v {program}"))
            .output();
        !found.is_ok_and(|output| output.status.success())
    });
    if let Some(program) = missing {
        eprintln!("skipped: {program} is not installed");
    }
    missing.is_none()
}

fn run(program: &str, directory: &Path, arguments: &[&str]) {
    let output = Command::new(program)
        .current_dir(directory)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Starts docker-registry with a data directory and, if `tls`, the certificates in `dir`.
fn docker_registry(dir: &Path, tls: bool) -> (Daemon, String) {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let address = format!("127.0.0.1:{port}");
    let mut config = format!(
        "version: 0.1\nlog: {{ level: error }}\n\
         storage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp:\n  addr: {address}\n",
        dir.join("data").display()
    );
    if tls {
        let file = |name: &str| dir.join(name).display().to_string();
        config.push_str(&format!(
            "  tls:\n    certificate: {}\n    key: {}\n    clientcas: [{}]\n",
            file("server.pem"),
            file("server.key"),
            file("ca.pem"),
        ));
    }
    std::fs::write(dir.join("registry.yml"), config).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(dir.join("registry.yml"))
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let daemon = Daemon(child);
    for _ in 0..100 {
        if std::net::TcpStream::connect(&address).is_ok() {
            return (daemon, address);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("docker-registry does not listen");
}

/// Writes an OCI image layout.
fn write_layout(dir: &Path, image: &BuiltImage) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for bytes in [&image.manifest, &image.config, &image.layer] {
        std::fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
    }
    let manifest = descriptor(
        "application/vnd.oci.image.manifest.v1+json",
        &image.manifest,
    );
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_other_tools_come_from_a_real_registry() {
    if !is_root() || !installed(&["docker-registry", "skopeo"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = hello("real");
    write_layout(&dir.path().join("oci"), &image);
    let (_daemon, address) = docker_registry(dir.path(), false);
    let tar = common::builder("real").format(LayerFormat::Tar).build();
    write_layout(&dir.path().join("tar"), &tar);
    let copy = |layout: &str, options: &[&str], name: &str| {
        let target = format!("docker://{address}/{name}");
        let mut arguments = vec!["copy", "--insecure-policy", "--dest-tls-verify=false"];
        arguments.extend(options);
        arguments.extend([layout, &target]);
        run("skopeo", dir.path(), &arguments);
    };
    copy("oci:oci", &[], "plain:1");
    copy("oci:oci", &["--format", "v2s2"], "docker:1");
    copy(
        "oci:tar",
        &["--format", "oci", "--dest-compress-format", "zstd"],
        "zstd:1",
    );
    let node = Node::new();
    assert_eq!(
        node.pull(&format!("{address}/plain:1")).await.unwrap(),
        id(&image)
    );
    for name in ["docker:1", "zstd:1"] {
        let name = format!("{address}/{name}");
        node.pull(&name).await.unwrap();
        assert_eq!(
            node.read(&name, "/etc/hello").as_deref(),
            Some("real"),
            "{name}"
        );
    }
    let zstd = node.images.resolve(&format!("{address}/zstd:1")).unwrap();
    let manifest = format!("root/blobs/sha256/{}", zstd.manifest.hex());
    let manifest = node.dir.path().join(manifest);
    let manifest = std::fs::read_to_string(manifest).unwrap();
    assert!(manifest.contains("layer.v1.tar+zstd"), "{manifest}");
    let error = node.pull(&format!("{address}/plain:2")).await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_private_authority_and_client_certificates() {
    if !is_root() || !installed(&["docker-registry", "skopeo", "openssl"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let openssl = |arguments: &str| {
        run("openssl", here, &arguments.split(' ').collect::<Vec<_>>());
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca"
    ));
    std::fs::write(here.join("ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    for name in ["server", "client"] {
        openssl(&format!(
            "req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile ext -out {name}.pem"
        ));
    }
    let image = hello("tls");
    write_layout(&here.join("oci"), &image);
    let (_daemon, address) = docker_registry(here, true);
    let certs = here.join("skopeo");
    std::fs::create_dir(&certs).unwrap();
    for (from, to) in [
        ("ca.pem", "ca.crt"),
        ("client.pem", "c.cert"),
        ("client.key", "c.key"),
    ] {
        std::fs::copy(here.join(from), certs.join(to)).unwrap();
    }
    let target = format!("docker://{address}/tls:1");
    let arguments = [
        "copy",
        "--insecure-policy",
        "--dest-cert-dir",
        "skopeo",
        "oci:oci",
        &target,
    ];
    run("skopeo", here, &arguments);

    let node = Node::new();
    let name = format!("{address}/tls:1");
    let file = |name: &str| here.join(name).display().to_string();
    let client = format!(
        "client = [[\"{}\", \"{}\"]]",
        file("client.pem"),
        file("client.key")
    );
    let server = format!("server = \"https://{address}\"");
    node.hosts(&address, &server);
    let error = node.pull(&name).await.unwrap_err();
    assert!(
        matches!(error, PullError::RegistryUnavailable { .. }),
        "unknown authority: {error}"
    );
    node.hosts(&address, &format!("{server}\nca = \"{}\"", file("ca.pem")));
    assert!(node.pull(&name).await.is_err(), "no client certificate");
    node.hosts(
        &address,
        &format!("{server}\nca = [\"{}\"]\n{client}", file("ca.pem")),
    );
    assert_eq!(node.pull(&name).await.unwrap(), id(&image));
    node.images.remove(&name).unwrap();
    node.hosts(&address, &format!("{server}\nskip_verify = true\n{client}"));
    assert_eq!(node.pull(&name).await.unwrap(), id(&image));
    node.hosts(
        &address,
        &format!("{server}\nca = \"{}\"", file("client.key")),
    );
    let error = node.pull(&name).await.unwrap_err();
    assert!(matches!(error, PullError::Hosts { .. }), "{error}");
}
