//! Bad network configurations: Status says what is wrong and where, pods are refused for the same
//! reason, and a corrected file is taken without a restart.

use anyhow::{Context, ensure};
use kelson_client::{Code, Error};
use kelson_cri::v1;

use crate::case::{Case, Need, Outcome, on_node};
use crate::node::Node;
use crate::pod::{host_network_pod, pod};

pub(super) fn cases() -> Vec<Case> {
    vec![
        on_node("bad_networks::no_conflist", |node| Box::pin(none(node))),
        on_node("bad_networks::conflists_that_do_not_parse", |node| {
            Box::pin(broken(node))
        }),
        on_node("bad_networks::missing_plugin", |node| {
            Box::pin(missing_plugin(node))
        }),
        on_node("bad_networks::failing_plugin", |node| {
            Box::pin(failing_plugin(node))
        }),
        on_node("bad_networks::full_subnet", |node| Box::pin(full(node))),
        on_node("bad_networks::full_subnet_of_external_plugins", |node| {
            Box::pin(full_external(node))
        })
        .needs(Need::Program(
            "/usr/lib/cni/host-local",
            "containernetworking-plugins",
        )),
    ]
}

/// Starts the daemon anew without the built-in network, and with these further keys of `[network]`.
async fn without_fallback(node: &mut Node, keys: &str) -> Outcome {
    let drop_ins = node.dir().join("conf.d");
    std::fs::create_dir(&drop_ins)?;
    let text = format!("[network]\nfallback = \"none\"\n{keys}\n");
    std::fs::write(drop_ins.join("10-network.toml"), text)?;
    std::fs::create_dir(node.dir().join("net.d"))?;
    node.kill().await?;
    node.restart().await
}

fn write(node: &Node, name: &str, text: &str) -> Outcome {
    Ok(std::fs::write(node.dir().join("net.d").join(name), text)?)
}

/// A list of one bridge with host-local addresses, and `more` plugins after it.
fn bridge(node: &Node, subnet: &str, more: &str) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"{name}-list","plugins":[{{"type":"bridge","bridge":"{name}",
        "isGateway":true,"ipam":{{"type":"host-local","dataDir":"{dir}/ipam",
        "ranges":[[{{"subnet":"{subnet}"}}]]}}}}{more}]}}"#,
        name = node.name(),
        dir = node.dir().display(),
    )
}

/// A subnet that no other case has at the same time.
fn subnet(node: &Node, prefix: u8) -> String {
    let mut number = std::process::id();
    number += node.name().bytes().map(u32::from).sum::<u32>();
    format!("172.{}.{}.0/{prefix}", 20 + number % 11, number / 11 % 256)
}

/// The message of `NetworkReady`; nothing when it is ready.
async fn complaint(node: &Node) -> anyhow::Result<Option<String>> {
    let answer = node
        .client
        .status(v1::StatusRequest { verbose: false })
        .await?;
    let conditions = answer.status.context("no status")?.conditions;
    let find = |kind| {
        conditions
            .iter()
            .find(move |one| one.r#type == kind)
            .with_context(|| format!("no {kind}"))
    };
    ensure!(find("RuntimeReady")?.status, "{conditions:?}");
    let network = find("NetworkReady")?;
    if network.status {
        return Ok(None);
    }
    ensure!(network.reason == "NetworkPluginNotReady", "{network:?}");
    Ok(Some(network.message.clone()))
}

/// The code and text of a pod that cannot be made, of which nothing is left.
async fn refused(node: &Node) -> anyhow::Result<(Code, String)> {
    let error = node
        .run_pod(&pod(&node.logs()))
        .await
        .err()
        .context("the pod was made")?;
    let code = error
        .downcast_ref::<Error>()
        .and_then(Error::code)
        .context("no code")?;
    let request = v1::ListPodSandboxRequest::default();
    let ready = v1::PodSandboxState::SandboxReady;
    let pods = node.client.list_pod_sandbox(request).await?.items;
    ensure!(
        pods.iter().filter(|pod| pod.state() == ready).count() <= 1,
        "{pods:?}"
    );
    Ok((code, format!("{error:#}")))
}

async fn none(node: &mut Node) -> Outcome {
    without_fallback(node, "").await?;
    let folder = node.dir().join("net.d").display().to_string();
    let message = complaint(node).await?.context("ready without a network")?;
    ensure!(message.contains(&folder), "{message}");
    let (code, text) = refused(node).await?;
    ensure!(
        code == Code::Unavailable || code == Code::FailedPrecondition,
        "{code:?} {text}"
    );
    ensure!(text.contains(&folder), "{text}");
    // A pod on the host's network needs none.
    node.run_pod(&host_network_pod(&node.logs())).await?;
    write(
        node,
        "10-good.conflist",
        &bridge(node, &subnet(node, 24), ""),
    )?;
    ensure!(complaint(node).await?.is_none());
    node.run_pod(&pod(&node.logs())).await?;
    Ok(())
}

async fn broken(node: &mut Node) -> Outcome {
    without_fallback(node, "").await?;
    let list = |plugins: &str| {
        format!(
            r#"{{"cniVersion":"1.0.0","name":"{}-list","plugins":{plugins}}}"#,
            node.name()
        )
    };
    for text in [
        "{ this is no JSON".to_owned(),
        String::new(),
        "[]".to_owned(),
        list("[]"),
        list("{}"),
        list(r#"[{"no-type":1}]"#),
        list(r#"[{"type":"../../bin/sh"}]"#),
        list(r#"[{"type":"bridge"}]"#).replace("1.0.0", "99.0.0"),
        list(r#"[{"type":"bridge"}]"#).replace("-list", "/../list"),
        "[".repeat(100_000),
    ] {
        write(node, "10-broken.conflist", &text)?;
        let begin = &text[..text.len().min(80)];
        let message = complaint(node)
            .await?
            .with_context(|| format!("ready with {begin:?}"))?;
        ensure!(message.contains("10-broken.conflist"), "{begin}: {message}");
        ensure!(message.len() < 2000, "{begin}: {message}");
        let (_, text) = refused(node).await?;
        ensure!(text.contains("10-broken.conflist"), "{begin}: {text}");
    }
    // A later file that is right is taken; with its removal the mistake is back.
    write(
        node,
        "20-good.conflist",
        &bridge(node, &subnet(node, 24), ""),
    )?;
    ensure!(complaint(node).await?.is_none());
    let made = node.run_pod(&pod(&node.logs())).await?;
    std::fs::remove_file(node.dir().join("net.d/20-good.conflist"))?;
    ensure!(complaint(node).await?.is_some());
    // What was made is removed without its configuration.
    node.remove_pod(&made).await
}

async fn missing_plugin(node: &mut Node) -> Outcome {
    let bin = node.dir().join("bin");
    std::fs::create_dir(&bin)?;
    without_fallback(node, &format!("bin_dirs = [\"{}\"]", bin.display())).await?;
    let more = r#",{"type":"no-such-plugin"}"#;
    write(
        node,
        "10-list.conflist",
        &bridge(node, &subnet(node, 24), more),
    )?;
    let message = complaint(node)
        .await?
        .context("ready without its plugins")?;
    ensure!(message.contains(&bin.display().to_string()), "{message}");
    let (_, text) = refused(node).await?;
    ensure!(
        text.contains("plugin") && text.contains(&bin.display().to_string()),
        "{text}"
    );
    Ok(())
}

async fn failing_plugin(node: &mut Node) -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    let bin = node.dir().join("bin");
    std::fs::create_dir(&bin)?;
    without_fallback(node, &format!("bin_dirs = [\"{}\"]", bin.display())).await?;
    let list = r#"{"cniVersion":"1.0.0","name":"fails","plugins":[{"type":"fails"}]}"#;
    write(node, "10-list.conflist", list)?;
    let plugin = bin.join("fails");
    let version = r#"{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}"#;
    for (script, word) in [
        // As the specification wants it, garbage, silence, and a death.
        (
            r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"the sea is rough","details":"gale"}'; exit 1"#,
            "the sea is rough",
        ),
        ("echo no JSON at all", "fails"),
        ("exit 3", "fails"),
        ("kill -9 $$", "fails"),
        ("yes", "fails"),
    ] {
        let text = format!(
            "#!/bin/sh\ncase $CNI_COMMAND in\nVERSION) echo '{version}' ;;\nADD) {script} ;;\nesac\n"
        );
        std::fs::write(&plugin, text)?;
        std::fs::set_permissions(&plugin, PermissionsExt::from_mode(0o755))?;
        let (_, text) = refused(node).await?;
        ensure!(text.contains(word), "{script}: {text}");
        ensure!(text.len() < 10_000, "{script}: {} bytes", text.len());
    }
    Ok(())
}

async fn full(node: &mut Node) -> Outcome {
    without_fallback(node, "").await?;
    // A /30 has one address besides the gateway's.
    let subnet = subnet(node, 30);
    write(node, "10-small.conflist", &bridge(node, &subnet, ""))?;
    let first = node.run_pod(&pod(&node.logs())).await?;
    for _ in 0..3 {
        let (code, text) = refused(node).await?;
        ensure!(code == Code::ResourceExhausted, "{code:?} {text}");
        let network = subnet.trim_end_matches("0/30");
        ensure!(
            text.contains(network) && text.contains("no free address"),
            "{text}"
        );
    }
    ensure!(
        complaint(node).await?.is_none(),
        "a full subnet is no broken network"
    );
    node.remove_pod(&first).await?;
    node.run_pod(&pod(&node.logs())).await?;
    Ok(())
}

async fn full_external(node: &mut Node) -> Outcome {
    without_fallback(node, "native = false").await?;
    write(
        node,
        "10-small.conflist",
        &bridge(node, &subnet(node, 30), ""),
    )?;
    let first = node.run_pod(&pod(&node.logs())).await?;
    for _ in 0..2 {
        let (_, text) = refused(node).await?;
        ensure!(text.contains("no IP addresses available"), "{text}");
    }
    node.remove_pod(&first).await?;
    node.run_pod(&pod(&node.logs())).await?;
    Ok(())
}
