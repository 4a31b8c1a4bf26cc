//! Namespaces that a pod shares with the node or within itself, and ports of the node.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Check, passed};
use crate::kubelet::agent::free_port;
use crate::kubelet::manifests::{container, host_path, idle, mount, pod};
use crate::kubelet::world::{World, wait};

/// The pods that only stay.
pub(super) const PODS: &[&str] = &["host", "together", "ports"];

pub(super) const CHECKS: &[Check] = &[
    (
        "a pod on the node's network, PID and IPC namespaces is in them",
        |world| {
            world.wait_until_ready("host")?;
            for kind in ["net", "pid", "ipc"] {
                let path = format!("/proc/self/ns/{kind}");
                let own = std::fs::read_link(&path).context("no namespace")?;
                let its = world.run("host", "main", &["readlink", &path])?;
                ensure!(
                    Path::new(its.trim()) == own,
                    "{kind} is {its:?}, not {}",
                    own.display()
                );
            }
            passed()
        },
    ),
    ("another pod is in none of them", |world| {
        let pod = world.wait_until_ready("together")?;
        for kind in ["net", "pid", "ipc", "mnt", "uts"] {
            let path = format!("/proc/self/ns/{kind}");
            let own = std::fs::read_link(&path).context("no namespace")?;
            let its = world.run("together", "one", &["readlink", &path])?;
            ensure!(Path::new(its.trim()) != own, "it is in the node's {kind}");
        }
        let net = world
            .subnet
            .rsplit_once('.')
            .map(|(net, _)| net)
            .unwrap_or_default();
        ensure!(
            pod.address().starts_with(net),
            "its address is {}",
            pod.address()
        );
        passed()
    }),
    (
        "containers with a shared process namespace see each other",
        |world| {
            let seen = world.run("together", "one", &["pgrep", "-f", "sleep.4242"])?;
            ensure!(
                !seen.trim().is_empty(),
                "nothing of the other container is seen"
            );
            passed()
        },
    ),
    (
        "a host port leads to the container, on all addresses or on one",
        |world| {
            let pod = world.wait_until_ready("ports")?;
            let direct: IpAddr = pod.address().parse().context("no address")?;
            wait(|| fetch(SocketAddr::new(direct, 8080)))?;
            let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let ports = pod.0["spec"]["containers"][0]["ports"].clone();
            let port = |index: usize| -> Result<u16> {
                let port = ports[index]["hostPort"].as_u64().context("no host port")?;
                u16::try_from(port).context("no port")
            };
            let gateway: IpAddr = {
                let net = world
                    .subnet
                    .rsplit_once('.')
                    .map(|(net, _)| net)
                    .unwrap_or_default();
                format!("{net}.1").parse().context("no gateway")?
            };
            for (address, port) in [
                (loopback, port(0)?),
                (gateway, port(0)?),
                (loopback, port(1)?),
            ] {
                let text = fetch(SocketAddr::new(address, port))?;
                ensure!(
                    text.ends_with("a page\n"),
                    "{address}:{port} answers {text:?}"
                );
            }
            let other = fetch(SocketAddr::new(gateway, port(1)?));
            ensure!(
                other.is_err(),
                "the port of loopback is open on {gateway}: {other:?}"
            );
            passed()
        },
    ),
    (
        "a directory of the node is mounted, read-only if so asked",
        |world| {
            world.wait_until_ready("host")?;
            world.run("host", "main", &["touch", "/out/made"])?;
            ensure!(
                world.out("host")?.join("made").exists(),
                "the file is not on the node"
            );
            ensure!(
                world.run("host", "main", &["touch", "/fixed/x"]).is_err(),
                "it can be written"
            );
            passed()
        },
    ),
];

/// What a web server there answers.
fn fetch(address: SocketAddr) -> Result<String> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, limit)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(limit)).context("no timeout")?;
    stream
        .write_all(b"GET / HTTP/1.0\r\n\r\n")
        .context("cannot ask")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("no answer")?;
    Ok(text)
}

pub(super) fn pods(world: &World) -> Result<Vec<Value>> {
    let out = world.out("host")?;
    let mut fixed = mount("out", "/fixed");
    fixed["readOnly"] = json!(true);
    let host = json!({
        "hostNetwork": true, "hostPID": true, "hostIPC": true,
        "volumes": [host_path("out", &out)],
        "containers": [idle("main", json!({ "volumeMounts": [mount("out", "/out"), fixed] }))],
    });
    let together = json!({
        "shareProcessNamespace": true,
        "containers": [
            idle("one", json!({})),
            container("two", "trap 'exit 0' TERM; sleep 4242 & wait", json!({})),
        ],
    });
    let ports = json!({
        "containers": [container("web", "exec httpd -f -p 8080 -h /var/www", json!({ "ports": [
            { "containerPort": 8080, "hostPort": free_port()? },
            { "containerPort": 8080, "hostPort": free_port()?, "hostIP": "127.0.0.1", "name": "own" },
        ] }))],
    });
    Ok(vec![
        pod("host", host),
        pod("together", together),
        pod("ports", ports),
    ])
}
