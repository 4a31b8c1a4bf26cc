//! Exec, attach and port-forward through the kubelet, as kubectl has them.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Check, passed};
use crate::kubelet::manifests::{container, pod};
use crate::kubelet::report::Verdict;
use crate::kubelet::socket::{Refusal, Socket};
use crate::kubelet::world::{World, full_name, wait};

/// The pod to talk with.
pub(super) const POD: &str = "echo";
/// The channels of a remote command.
const STDIN: u8 = 0;
const STDOUT: usize = 1;
const STDERR: usize = 2;
/// How the command ended, as a Kubernetes status.
const END: usize = 3;
/// The terminal's size.
const SIZE: u8 = 4;
/// The protocol of exec and attach; the kubelet speaks SPDY with the runtime for it.
const COMMAND: &str = "v5.channel.k8s.io";
/// The protocol of port-forward that the kubelet passes on to the runtime as it is.
const PORTS: &str = "v4.channel.k8s.io";

pub(super) const CHECKS: &[Check] = &[
    (
        "exec has input, output and errors apart, and the exit code",
        |world| {
            world.wait_until_ready(POD)?;
            let query = "command=sh&command=-c&command=cat%3Becho%20bad%20%3E%262%3Bexit%209\
            &input=1&output=1&error=1";
            with(
                world,
                &format!("/exec/default/{}/main?{query}", full_name(POD)),
                COMMAND,
                |socket| {
                    socket.send(STDIN, b"rope and tar\n")?;
                    socket.finish(STDIN)?;
                    let channels = socket.read(|_| false)?;
                    let text =
                        |channel: usize| String::from_utf8_lossy(&channels[channel]).into_owned();
                    ensure!(
                        text(STDOUT) == "rope and tar\n",
                        "the output is {:?}",
                        text(STDOUT)
                    );
                    ensure!(text(STDERR) == "bad\n", "the errors are {:?}", text(STDERR));
                    let end: Value = serde_json::from_str(&text(END)).context("no status")?;
                    let code = &end["details"]["causes"][0]["message"];
                    ensure!(code == "9", "it ended with {end}");
                    Ok(())
                },
            )
        },
    ),
    ("exec has a terminal of the size that is told", |world| {
        let query = "command=sh&command=-c&command=sleep%201%3Bstty%20size&tty=1&input=1&output=1";
        with(
            world,
            &format!("/exec/default/{}/main?{query}", full_name(POD)),
            COMMAND,
            |socket| {
                socket.send(SIZE, br#"{"Width":77,"Height":33}"#)?;
                let channels = socket.read(|_| false)?;
                let text = String::from_utf8_lossy(&channels[STDOUT]).into_owned();
                ensure!(text == "33 77\r\n", "the output is {text:?}");
                Ok(())
            },
        )
    }),
    (
        "attach has the input and the output of the container",
        |world| {
            let query = "input=1&output=1&error=1";
            with(
                world,
                &format!("/attach/default/{}/main?{query}", full_name(POD)),
                COMMAND,
                |socket| {
                    socket.send(STDIN, b"ahoy\n")?;
                    let channels =
                        socket.read(|channels| channels[STDOUT].ends_with(b"heard ahoy\n"))?;
                    let text = String::from_utf8_lossy(&channels[STDOUT]).into_owned();
                    ensure!(text == "heard ahoy\n", "the output is {text:?}");
                    wait(|| {
                        let log = world.logs(POD, "main", "")?;
                        ensure!(log == text, "the log is {log:?}");
                        Ok(())
                    })
                },
            )
        },
    ),
    ("port-forward reaches a port of the pod", |world| {
        let path = format!("/portForward/default/{}?port=8080", full_name(POD));
        with(world, &path, PORTS, |socket| {
            socket.send(0, b"GET / HTTP/1.0\r\n\r\n")?;
            let channels = socket.read(|channels| channels[0].ends_with(b"a page\n"))?;
            // Both channels begin with the number of the port.
            let port = 8080_u16.to_le_bytes();
            ensure!(
                channels[0].starts_with(&port),
                "channel 0 is {:?}",
                channels[0]
            );
            ensure!(channels[1] == port, "the errors are {:?}", channels[1]);
            ensure!(
                channels[0].ends_with(b"a page\n"),
                "the answer is {:?}",
                channels[0]
            );
            Ok(())
        })
    }),
];

/// Opens the path and uses the connection.
fn with(
    world: &World,
    path: &str,
    protocol: &'static str,
    talk: impl FnOnce(&mut Socket) -> Result<()>,
) -> Result<Verdict> {
    match Socket::open(&world.agent, path, protocol)? {
        Ok(mut socket) => talk(&mut socket).and_then(|()| passed()),
        Err(Refusal(code, text)) => bail!("{path} is answered with {code}: {}", text.trim()),
    }
}

pub(super) fn pods(_: &World) -> Result<Vec<Value>> {
    let script = "httpd -p 8080 -h /var/www; trap 'exit 0' TERM; \
        while read line; do echo heard $line; done; sleep 86400 & wait $!";
    let main = container("main", script, json!({ "stdin": true }));
    Ok(vec![pod(POD, json!({ "containers": [main] }))])
}
