//! `kelson exec`, `attach`, `port-forward`, `cp`, and `run -it`: streams and terminals.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::cli::{ok, run};
use crate::case::{Case, Need, Outcome, on_node};
use crate::node::{Node, PATIENCE};
use crate::screen::{Screen, moment, same_modes};
use crate::tool::{client, kelson};

pub(super) fn cases() -> Vec<Case> {
    let setsid = Need::Program("/usr/bin/setsid", "util-linux");
    vec![
        on_node("cli_stream::exec", |node| Box::pin(exec(node))),
        on_node("cli_stream::exec_at_a_terminal", |node| {
            Box::pin(exec_at_a_terminal(node))
        })
        .needs(setsid),
        on_node("cli_stream::attach", |node| Box::pin(attach(node))).needs(setsid),
        on_node("cli_stream::run_with_input", |node| {
            Box::pin(run_with_input(node))
        })
        .needs(setsid),
        on_node("cli_stream::port_forward", |node| {
            Box::pin(port_forward(node))
        }),
        on_node("cli_stream::cp", |node| Box::pin(cp(node))),
    ]
}

/// A pod called `web` that sleeps.
async fn web(node: &Node) -> anyhow::Result<()> {
    let image = node.busybox().await?;
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    run(node, &["-d", "--name", "web", &image, "-c", script])
        .await?
        .ok()?;
    Ok(())
}

/// Runs a client command with input; its exit code and output.
async fn with_input(
    node: &Node,
    arguments: &[&str],
    input: &[u8],
) -> anyhow::Result<(Option<i32>, Vec<u8>)> {
    let mut child = client(node)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("no input")?;
    let write = async {
        // A command that does not read its input ends all the same.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let both = async { tokio::join!(write, child.wait_with_output()).1 };
    let output = tokio::time::timeout(PATIENCE, both).await??;
    Ok((output.status.code(), output.stdout))
}

async fn exec(node: &mut Node) -> Outcome {
    web(node).await?;
    let ran = kelson(
        node,
        ["exec", "web", "sh", "-c", "echo out; echo err >&2; exit 42"],
    )
    .await?;
    ensure!(
        (ran.code, &*ran.stdout, &*ran.stderr) == (42, "out\n", "err\n"),
        "{ran:?}"
    );
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (code, got) = with_input(node, &["exec", "-i", "web", "cat"], &sent).await?;
    ensure!(
        code == Some(0) && got == sent,
        "{code:?}, {} bytes",
        got.len()
    );
    // A command that does not read does not stop it.
    let (code, _) = with_input(node, &["exec", "-i", "web", "false"], &sent).await?;
    ensure!(code == Some(1), "{code:?}");
    // Without -i, input is not touched.
    let (code, got) = with_input(node, &["exec", "web", "cat"], b"typed").await?;
    ensure!(code == Some(0) && got.is_empty(), "{code:?} {got:?}");

    let ran = kelson(node, ["exec", "web", "/no/such"]).await?;
    ensure!(ran.code != 0 && ran.stderr.contains("/no/such"), "{ran:?}");
    let error = kelson(node, ["exec", "-it", "web", "sh"])
        .await?
        .failed(1)?;
    ensure!(error.contains("leave out -t"), "{error}");
    let error = kelson(node, ["exec", "nobody", "true"]).await?.failed(1)?;
    ensure!(error.contains("nobody"), "{error}");
    kelson(node, ["exec", "--detach-keys", "ctrl-1", "web", "true"])
        .await?
        .failed(2)?;
    Ok(())
}

async fn exec_at_a_terminal(node: &mut Node) -> Outcome {
    web(node).await?;
    let mut screen = Screen::start(node, &["exec", "-it", "web", "sh"])?;
    let before = screen.modes()?;
    screen.expect("# ")?;
    ensure!(
        !same_modes(&screen.modes()?, &before),
        "the terminal is not raw"
    );
    screen.type_in("tty; busybox stty size\r")?;
    screen.expect("/dev/pts/")?;
    screen.expect("30 100")?;
    screen.resize(41, 123)?;
    screen.type_in("while ! busybox stty size | grep 123; do sleep 0.05; done\r")?;
    screen.expect("41 123")?;
    // An interrupt is for the process there.
    screen.type_in("sleep 100\r")?;
    moment().await;
    screen.type_in("\x03echo still $((40 + 2))\r")?;
    screen.expect("still 42")?;
    screen.type_in("exit 5\r")?;
    let status = screen.end().await?;
    ensure!(status.code() == Some(5), "{status}");
    ensure!(
        same_modes(&screen.modes()?, &before),
        "the terminal is not restored"
    );

    // Left by the keys, and by a signal.
    for (signal, code) in [
        (None, 0),
        (Some(Signal::TERM), 143),
        (Some(Signal::HUP), 129),
    ] {
        let mut screen = Screen::start(node, &["exec", "-it", "web", "sh"])?;
        let before = screen.modes()?;
        screen.expect("# ")?;
        match signal {
            None => screen.type_in("\x10\x11")?,
            Some(signal) => screen.signal(signal)?,
        }
        let status = screen.end().await?;
        ensure!(status.code() == Some(code), "{signal:?}: {status}");
        ensure!(
            same_modes(&screen.modes()?, &before),
            "{signal:?}: not restored"
        );
    }
    // The shells have lost their terminals, and are gone.
    for _ in 0..100 {
        if !ok(node, &["exec", "web", "ps"])
            .await?
            .lines()
            .any(|line| line.ends_with(" sh"))
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("a shell without a terminal lives on")
}

async fn attach(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let script = "while read x; do echo \"<$x>\"; done; exit 9";
    let flags = ["-dit", "--name", "talk", &image, "-c", script];
    run(node, &flags).await?.ok()?;
    let mut screen = Screen::start(node, &["attach", "-it", "--detach-keys", "ctrl-x", "talk"])?;
    let before = screen.modes()?;
    // It is attached when it answers.
    for _ in 0..100 {
        screen.type_in("one\r")?;
        moment().await;
        if screen.expect("<one>").is_ok() {
            break;
        }
    }
    let mut watcher = client(node)
        .args(["attach", "talk"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(watcher.stdout.take().context("no output")?).lines();
    let seen = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("<two>") {
                return Ok(());
            }
        }
        bail!("the watcher has ended")
    };
    // It is attached when it sees something.
    let type_in = async {
        loop {
            screen.type_in("two\r")?;
            screen.expect("<two>")?;
            moment().await;
        }
    };
    tokio::time::timeout(PATIENCE, async {
        tokio::select! { outcome = seen => outcome, outcome = type_in => outcome }
    })
    .await??;
    screen.type_in("\x18")?;
    let status = screen.end().await?;
    ensure!(status.code() == Some(0), "{status}");
    ensure!(
        same_modes(&screen.modes()?, &before),
        "the terminal is not restored"
    );
    // The container goes on, and ends by the end of its input; all who watch end with its code.
    let mut screen = Screen::start(node, &["attach", "-it", "talk"])?;
    moment().await;
    screen.type_in("three\r")?;
    screen.expect("<three>")?;
    screen.type_in("\x04")?;
    let status = screen.end().await?;
    ensure!(status.code() == Some(9), "{status}");
    let status = tokio::time::timeout(PATIENCE, watcher.wait()).await??;
    ensure!(status.code() == Some(9), "{status}");
    let error = kelson(node, ["attach", "talk"]).await?.failed(1)?;
    ensure!(error.contains("run"), "{error}");

    web(node).await?;
    let error = kelson(node, ["attach", "-i", "web"]).await?.failed(1)?;
    ensure!(error.contains("stdin"), "{error}");
    Ok(())
}

async fn run_with_input(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let logs = node.logs().display().to_string();
    let flags = ["run", "--log-dir", &logs, "--rm"];
    let script = "echo begin; cat; echo end; exit 3";
    let sent: Vec<u8> = (0..20_000_u32)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect();
    let arguments = [&flags[..], &["-i", &image, "-c", script]].concat();
    let (code, got) = with_input(node, &arguments, &sent).await?;
    let expected = [&b"begin\n"[..], &sent, b"end\n"].concat();
    ensure!(
        code == Some(3) && got == expected,
        "{code:?}, {} bytes",
        got.len()
    );

    let arguments = [&flags[..], &["-it", &image]].concat();
    let mut screen = Screen::start(node, &arguments)?;
    let before = screen.modes()?;
    screen.expect("press enter")?;
    screen.type_in("\rtty\r")?;
    screen.expect("/dev/pts/0")?;
    screen.type_in("exit 4\r")?;
    let status = screen.end().await?;
    ensure!(status.code() == Some(4), "{status}");
    ensure!(
        same_modes(&screen.modes()?, &before),
        "the terminal is not restored"
    );
    ensure!(ok(node, &["pods", "-q"]).await?.is_empty());

    let arguments = [&flags[..3], &["-it", "--name", "left", &image]].concat();
    let mut screen = Screen::start(node, &arguments)?;
    screen.expect("press enter")?;
    moment().await;
    screen.type_in("\x10\x11")?;
    let status = screen.end().await?;
    ensure!(status.code() == Some(0), "{status}");
    ensure!(
        ok(node, &["ps"]).await?.contains("Running"),
        "it does not go on"
    );
    Ok(())
}

async fn port_forward(node: &mut Node) -> Outcome {
    let image = node.busybox().await?;
    let script = "mkdir /www; seq 1 200000 > /www/index.html; exec httpd -f -p 80 -h /www";
    run(node, &["-d", "--name", "site", &image, "-c", script])
        .await?
        .ok()?;
    let serves = "until wget -q -O /dev/null http://127.0.0.1; do sleep 0.1; done";
    ok(node, &["exec", "site", "sh", "-c", serves]).await?;
    let mut child = client(node)
        .args(["port-forward", "site", ":80", ":81"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut addresses = Vec::new();
    while addresses.len() < 4 {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await??;
        let line = line.context("it has ended")?;
        let (address, port) = line.split_once(" -> ").context(line.clone())?;
        addresses.push((address.to_owned(), port.to_owned()));
        if addresses.len() == 2 && !addresses[1].0.starts_with('[') {
            // Without IPv6 there are two lines.
            break;
        }
    }
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    for (address, _) in addresses.iter().filter(|(_, port)| port == "80") {
        let all: Vec<_> = (0..5).map(|_| tokio::spawn(get(address.clone()))).collect();
        for text in all {
            let text = text.await??;
            ensure!(text.ends_with(&expected), "{} bytes", text.len());
        }
    }
    let refused = addresses.iter().find(|(_, port)| port == "81");
    let (address, _) = refused.context("no second port")?;
    let mut stream = TcpStream::connect(address).await?;
    let mut rest = Vec::new();
    // However it is told, it ends.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await?;
    ensure!(rest.is_empty());
    let mut errors = BufReader::new(child.stderr.take().context("no errors")?).lines();
    let line = tokio::time::timeout(PATIENCE, errors.next_line()).await??;
    let line = line.context("no word about the refused port")?;
    ensure!(line.contains("81"), "{line}");
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let pid = pid
        .and_then(rustix::process::Pid::from_raw)
        .context("it has ended")?;
    rustix::process::kill_process(pid, Signal::INT)?;
    let status = tokio::time::timeout(PATIENCE, child.wait()).await??;
    ensure!(status.code() == Some(0), "{status}");

    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let ports = format!("{}:80", taken.local_addr()?.port());
    let error = kelson(node, ["port-forward", "site", &ports])
        .await?
        .failed(1)?;
    ensure!(error.contains(&ports[..ports.len() - 3]), "{error}");
    kelson(node, ["port-forward", "site", "0:0"])
        .await?
        .failed(2)?;
    kelson(node, ["port-forward", "nobody", ":80"])
        .await?
        .failed(1)?;
    Ok(())
}

/// What a server answers to the simplest request.
async fn get(address: String) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

async fn cp(node: &mut Node) -> Outcome {
    web(node).await?;
    let here = node.dir().join("here");
    std::fs::create_dir_all(here.join("tree/sub"))?;
    std::fs::write(here.join("tree/file"), "one\n")?;
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(here.join("tree/sub/big"), &big)?;
    std::os::unix::fs::symlink("../file", here.join("tree/sub/link"))?;
    let at = |path: &str| here.join(path).display().to_string();

    // Into a directory that is there, and under a new name.
    ok(node, &["cp", &at("tree"), "web:/mnt"]).await?;
    ok(node, &["cp", &at("tree/file"), "web:/mnt/other"]).await?;
    let listed = ok(
        node,
        &[
            "exec",
            "web",
            "sh",
            "-c",
            "cat /mnt/tree/sub/link /mnt/other; wc -c < /mnt/tree/sub/big",
        ],
    )
    .await?;
    ensure!(listed == "one\none\n3000000", "{listed}");
    // And back.
    ok(node, &["cp", "web:/mnt/tree", &at("back")]).await?;
    ensure!(std::fs::read(here.join("back/sub/big"))? == big);
    ensure!(std::fs::read_link(here.join("back/sub/link"))?.to_str() == Some("../file"));
    ok(node, &["cp", "web:/mnt/tree/file", &at("back")]).await?;
    ensure!(std::fs::read_to_string(here.join("back/file"))? == "one\n");
    ok(node, &["cp", "web:/etc/passwd", &at("users")]).await?;
    ensure!(std::fs::read_to_string(here.join("users"))?.contains("sailor"));

    for (arguments, word) in [
        (["cp", "web:/no/such", "x"], "tar"),
        (["cp", "web:/", "x"], "no name"),
        (["cp", "a", "b"], "CONTAINER:PATH"),
        (["cp", "web:/a", "web:/b"], "both"),
        (["cp", "/no/such", "web:/mnt"], "/no/such"),
        (["cp", "nobody:/etc", "x"], "nobody"),
    ] {
        let target = here.join("x").display().to_string();
        let arguments = arguments.map(|word| if word == "x" { &*target } else { word });
        let error = kelson(node, arguments).await?.failed(1)?;
        ensure!(error.contains(word), "{arguments:?}: {error}");
        ensure!(!here.join("x").exists(), "{arguments:?} leaves something");
    }
    // A container that lies: its tar sends a name that leaves the target.
    let evil = "printf '#!/bin/sh\\ncd /mnt && exec busybox tar cf - ../etc/passwd' > /bin/evil; \
                busybox rm /bin/tar; busybox mv /bin/evil /bin/tar; busybox chmod 755 /bin/tar";
    ok(node, &["exec", "web", "sh", "-c", evil]).await?;
    let error = kelson(node, ["cp", "web:/mnt/tree", &at("evil")])
        .await?
        .failed(1)?;
    ensure!(
        error.contains("asked for") || error.contains(".."),
        "{error}"
    );
    ensure!(!here.join("evil").exists());
    // And one without.
    ok(node, &["exec", "web", "busybox", "rm", "/bin/tar"]).await?;
    for arguments in [
        ["cp", "web:/mnt/tree", &at("none")],
        ["cp", &at("tree"), "web:/mnt"],
    ] {
        let error = kelson(node, arguments).await?.failed(1)?;
        ensure!(error.contains("cannot run tar"), "{error}");
    }
    Ok(())
}
