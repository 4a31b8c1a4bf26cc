//! Attaching to containers.

use std::time::{Duration, Instant};

use kelson_shim::client::{Output, Session, ShimError};
use kelson_shim::ids::ContainerId;
use kelson_shim::proto::{AttachRequest, RefusalKind, StartRequest, StdinPolicy};
use libtest_mimic::Trial;

use crate::world::{Pod, SOON, World, is_alive, trial, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("many_see_the_output_from_then_on_and_the_end", many_see),
        trial("input_comes_from_all_and_stays_open", input_stays_open),
        trial("input_once_ends_with_its_first_client", input_once),
        trial(
            "input_that_nobody_reads_stops_only_its_writer",
            input_unread,
        ),
        trial("a_container_without_input_refuses_it", no_input),
        trial("attach_to_a_terminal", terminal),
        trial("a_client_that_does_not_read_is_dropped", does_not_read),
        trial(
            "a_terminal_waits_for_who_watches_but_not_for_ever",
            terminal_waits,
        ),
        trial("attached_clients_that_vanish_leave_nothing", vanish),
        trial("what_does_not_run_cannot_be_attached_to", not_running),
        trial("the_number_of_attached_clients_is_limited", limited),
        trial("output_to_the_very_end_is_seen", to_the_end),
    ]
}

impl Pod {
    /// Starts a shell script that has standard input.
    async fn sh_with(&self, stdin: StdinPolicy, tty: bool, script: &str) -> StartRequest {
        let mut request = self.request(&["sh", "-c", script]);
        request.stdin = stdin;
        let process = request.spec.process_mut().as_mut().unwrap();
        process.set_terminal(Some(tty));
        self.start(&request).await.unwrap();
        request
    }

    async fn try_attach(&self, container: ContainerId, stdin: bool) -> Result<Session, ShimError> {
        self.shim
            .attach(AttachRequest { container, stdin }, SOON)
            .await
    }

    async fn attach(&self, container: ContainerId, stdin: bool) -> Session {
        self.try_attach(container, stdin).await.unwrap()
    }
}

/// What comes until the text is in it.
async fn until(session: &mut Session, text: &str) -> String {
    let mut all = String::new();
    let wait = async {
        while !all.contains(text) {
            match session.next().await.unwrap() {
                Output::Stdout(bytes) | Output::Stderr(bytes) => {
                    all.push_str(&String::from_utf8(bytes).unwrap());
                }
                Output::Exited(exit) => panic!("{exit:?} before {text:?}"),
            }
        }
    };
    if tokio::time::timeout(SOON, wait).await.is_err() {
        panic!("{text:?} does not come, only {all:?}");
    }
    all
}

/// What comes until the end, and how the container ended.
async fn rest(session: &mut Session) -> (String, String, i32) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match tokio::time::timeout(SOON, session.next())
            .await
            .unwrap()
            .unwrap()
        {
            Output::Stdout(bytes) => stdout.extend(bytes),
            Output::Stderr(bytes) => stderr.extend(bytes),
            Output::Exited(exit) => {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                return (text(stdout), text(stderr), exit.exit_code);
            }
        }
    }
}

async fn many_see(world: World) -> World {
    let mut pod = world.pod().await;
    let script = "echo early; read x; echo \"<$x>\"; echo err >&2; exit 5";
    let id = pod.sh_with(StdinPolicy::Open, false, script).await.id;
    let log = pod.logs.join(format!("{id}.log"));
    let early = || std::fs::read_to_string(&log).unwrap().contains("early");
    wait_until("the first line is in the log", early).await;
    let mut writer = pod.attach(id, true).await;
    let mut readers = Vec::new();
    for _ in 0..5 {
        readers.push(pod.attach(id, false).await);
    }
    assert!(readers[0].take_stdin().is_none());
    writer.take_stdin().unwrap().write(b"x\n").await.unwrap();
    for session in readers.iter_mut().chain([&mut writer]) {
        let seen = rest(session).await;
        assert_eq!(seen, ("<x>\n".to_owned(), "err\n".to_owned(), 5));
        // Nothing follows the end.
        assert!(session.next().await.unwrap_err().is_gone());
    }
    assert_eq!(pod.exit(id).await.exit_code, 5);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(
        text.contains("stdout F <x>") && text.contains("stderr F err"),
        "{text}"
    );
    pod.shutdown().await;
    world
}

async fn input_stays_open(world: World) -> World {
    let mut pod = world.pod().await;
    let script = "while read x; do echo \"<$x>\"; done; exit 3";
    let id = pod.sh_with(StdinPolicy::Open, false, script).await.id;
    for _ in 0..3 {
        let mut first = pod.attach(id, true).await;
        let mut second = pod.attach(id, true).await;
        let mut stdin = first.take_stdin().unwrap();
        stdin.write(b"one\n").await.unwrap();
        until(&mut second, "<one>\n").await;
        // The end of a client's input is not the end of the container's.
        stdin.close().await.unwrap();
        second.take_stdin().unwrap().write(b"two\n").await.unwrap();
        until(&mut first, "<two>\n").await;
    }
    pod.shim.signal(id, 9, false, SOON).await.unwrap();
    assert_eq!(pod.exit(id).await.exit_code, 137);
    pod.shutdown().await;
    world
}

async fn input_once(world: World) -> World {
    let mut pod = world.pod().await;
    let script = "cat; echo end; read x || exit 4";
    for how in ["close", "drop", "close with another"] {
        let id = pod.sh_with(StdinPolicy::Once, false, script).await.id;
        let mut reader = pod.attach(id, false).await;
        // One without input changes nothing.
        drop(pod.attach(id, false).await);
        let mut first = pod.attach(id, true).await;
        let mut stdin = first.take_stdin().unwrap();
        stdin.write(b"typed\n").await.unwrap();
        until(&mut reader, "typed\n").await;
        let mut second = match how {
            "close with another" => Some(pod.attach(id, true).await),
            _ => None,
        };
        match how {
            "drop" => drop(first),
            _ => stdin.close().await.unwrap(),
        }
        let seen = rest(&mut reader).await;
        assert_eq!(seen, ("end\n".to_owned(), String::new(), 4), "{how}");
        if let Some(second) = &mut second {
            assert_eq!(rest(second).await.2, 4);
        }
        assert_eq!(pod.exit(id).await.exit_code, 4);
    }
    let id = pod
        .sh_with(StdinPolicy::Once, false, "cat; sleep 1000")
        .await
        .id;
    drop(pod.attach(id, true).await);
    let closed = async || {
        pod.try_attach(id, true)
            .await
            .err()
            .map(|error| error.refusal())
    };
    let begin = Instant::now();
    while closed().await.is_none() {
        assert!(begin.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(closed().await, Some(Some(RefusalKind::Invalid)));
    drop(pod.attach(id, false).await);
    pod.shutdown().await;
    world
}

async fn input_unread(world: World) -> World {
    let pod = world.pod().await;
    let script = "echo up; read go < /tmp/go; cat | busybox wc -c; sleep 1000";
    let script = format!("busybox mkfifo /tmp/go; {script}");
    let id = pod.sh_with(StdinPolicy::Open, false, &script).await.id;
    let mut session = pod.attach(id, true).await;
    let mut other = pod.attach(id, false).await;
    let mut stdin = session.take_stdin().unwrap();
    let block = vec![b'x'; 2 << 20];
    let write = tokio::time::timeout(Duration::from_millis(300), stdin.write(&block));
    assert!(
        write.await.is_err(),
        "nobody reads it, and yet it is written"
    );
    // The shim serves others meanwhile.
    assert_eq!(pod.exec(id, "echo go > /tmp/go").await.exit.exit_code, 0);
    stdin.write(b"x").await.unwrap();
    drop(other.take_stdin());
    pod.shutdown().await;
    drop((session, other));
    world
}

async fn no_input(world: World) -> World {
    let pod = world.pod().await;
    for tty in [false, true] {
        let id = pod
            .sh_with(StdinPolicy::None, tty, "cat; sleep 1000")
            .await
            .id;
        let error = pod.try_attach(id, true).await.unwrap_err();
        assert_eq!(error.refusal(), Some(RefusalKind::Invalid), "{error}");
        assert!(error.to_string().starts_with("stdin: "), "{error}");
        drop(pod.attach(id, false).await);
    }
    pod.shutdown().await;
    world
}

async fn terminal(world: World) -> World {
    let mut pod = world.pod().await;
    let script = "while read x; do stty size; echo \"<$x>\"; done; echo end; exit 6";
    let id = pod.sh_with(StdinPolicy::Once, true, script).await.id;
    let mut session = pod.attach(id, true).await;
    let mut watcher = pod.attach(id, false).await;
    let mut stdin = session.take_stdin().unwrap();
    let resizer = session.resizer();
    resizer.resize(33, 44).await.unwrap();
    resizer.resize(0, 0).await.unwrap();
    stdin.write(b"one\n").await.unwrap();
    let seen = until(&mut session, "<one>\r\n").await;
    assert!(seen.contains("33 44\r\n"), "{seen:?}");
    // Half a line comes, too, before the end.
    stdin.write(b"half").await.unwrap();
    stdin.close().await.unwrap();
    let (seen, _, code) = rest(&mut session).await;
    assert!(
        seen.contains("end\r\n") && !seen.contains("<half>"),
        "{seen:?}"
    );
    assert_eq!(code, 6);
    assert!(rest(&mut watcher).await.0.contains("33 44\r\n"));
    pod.exit(id).await;
    pod.shutdown().await;
    world
}

fn log_size(pod: &Pod, id: ContainerId) -> u64 {
    let log = pod.logs.join(format!("{id}.log"));
    log.metadata().unwrap().len()
}

async fn does_not_read(world: World) -> World {
    let pod = world.pod().await;
    let script = "read x; while :; do busybox seq 1 1000; done";
    let id = pod.sh_with(StdinPolicy::Open, false, script).await.id;
    let mut slow = pod.attach(id, false).await;
    let mut fast = pod.attach(id, true).await;
    fast.take_stdin().unwrap().write(b"\n").await.unwrap();
    let begin = Instant::now();
    let mut bytes = 0_usize;
    while bytes <= 1 << 20 {
        assert!(begin.elapsed() < SOON, "only {bytes} bytes came");
        match fast.next().await.unwrap() {
            Output::Stdout(block) => bytes += block.len(),
            other => panic!("{other:?}"),
        }
    }
    let before = log_size(&pod, id);
    drop(fast);
    wait_until("the log goes on", || {
        log_size(&pod, id) > before + (1 << 20)
    })
    .await;
    // What was sent before comes, and then the reason.
    let mut kept = 0_usize;
    let error = loop {
        match slow.next().await {
            Ok(Output::Stdout(block)) => kept += block.len(),
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.refusal(), Some(RefusalKind::Slow), "{error}");
    assert!(kept < 1 << 20, "{kept} bytes were kept for it");
    drop(pod.attach(id, false).await);
    pod.shim.signal(id, 9, false, SOON).await.unwrap();
    pod.shutdown().await;
    world
}

async fn terminal_waits(world: World) -> World {
    let mut pod = world.pod().await;
    let script = "read x; busybox seq 1 300000; read x; busybox seq 1 300000; exit 2";
    let id = pod.sh_with(StdinPolicy::Open, true, script).await.id;
    let mut session = pod.attach(id, true).await;
    let mut stdin = session.take_stdin().unwrap();
    stdin.write(b"\n").await.unwrap();
    // Far slower than the process, and yet nothing is lost.
    let mut text = Vec::new();
    while !text.ends_with(b"\n300000\r\n") {
        match session.next().await.unwrap() {
            Output::Stdout(block) => text.extend(block),
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let expected: String = (1..=300_000).map(|n| format!("{n}\r\n")).collect();
    assert!(text.ends_with(expected.as_bytes()));
    // Who does not read at all does not stop it.
    stdin.write(b"\n").await.unwrap();
    assert_eq!(pod.exit(id).await.exit_code, 2);
    let error = loop {
        match session.next().await {
            Ok(Output::Stdout(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.refusal(), Some(RefusalKind::Slow), "{error}");
    pod.shutdown().await;
    world
}

async fn vanish(world: World) -> World {
    let pod = world.pod().await;
    let script = "while :; do echo line; busybox usleep 1000; done";
    let id = pod.sh_with(StdinPolicy::Open, false, script).await.id;
    let fds = format!("/proc/{}/fd", pod.ready.pid);
    let count = || std::fs::read_dir(&fds).unwrap().count();
    let before = count();
    for round in 0..60 {
        let mut session = pod.attach(id, true).await;
        let mut stdin = session.take_stdin().unwrap();
        match round % 4 {
            // At once.
            0 => drop(session),
            // In the middle of its output.
            1 => {
                session.next().await.unwrap();
                drop(session);
            }
            // In the middle of its input.
            2 => {
                let block = vec![0; 1 << 20];
                let write = tokio::time::timeout(Duration::from_millis(10), stdin.write(&block));
                let _ = write.await;
                drop(session);
            }
            // Only its input.
            _ => {
                stdin.close().await.unwrap();
                session.next().await.unwrap();
            }
        }
    }
    wait_until("all connections are gone", || count() <= before + 1).await;
    let mut session = pod.attach(id, false).await;
    until(&mut session, "line\nline\n").await;
    pod.shim.signal(id, 9, false, SOON).await.unwrap();
    while let Ok(Output::Stdout(_)) = session.next().await {}
    pod.shutdown().await;
    world
}

async fn not_running(world: World) -> World {
    let mut pod = world.pod().await;
    let unknown = ContainerId::random().unwrap();
    let error = pod.try_attach(unknown, false).await.unwrap_err();
    assert_eq!(error.refusal(), Some(RefusalKind::NotFound), "{error}");
    let started = pod.request(&["sh", "-c", "exit 0"]);
    pod.start(&started).await.unwrap();
    pod.exit(started.id).await;
    let error = pod.try_attach(started.id, false).await.unwrap_err();
    assert_eq!(error.refusal(), Some(RefusalKind::NotRunning), "{error}");
    assert!(is_alive(pod.ready.pid));
    pod.shutdown().await;
    world
}

async fn limited(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh_with(StdinPolicy::None, false, "sleep 1000").await.id;
    let mut sessions = Vec::new();
    let error = loop {
        match pod.try_attach(id, false).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
    };
    assert_eq!(error.refusal(), Some(RefusalKind::Busy), "{error}");
    assert_eq!(sessions.len(), 32);
    // Other calls find room all the same.
    assert_eq!(pod.exec(id, "echo hi").await.stdout, b"hi\n");
    drop(sessions);
    let begin = Instant::now();
    while pod.try_attach(id, false).await.is_err() {
        assert!(begin.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pod.shutdown().await;
    world
}

async fn to_the_end(world: World) -> World {
    let mut pod = world.pod().await;
    for _ in 0..10 {
        let script = "read x; busybox seq 1 60000; busybox seq 1 5 >&2; exit 1";
        let id = pod.sh_with(StdinPolicy::Open, false, script).await.id;
        let mut session = pod.attach(id, true).await;
        session.take_stdin().unwrap().write(b"\n").await.unwrap();
        let (stdout, stderr, code) = rest(&mut session).await;
        let expected: String = (1..=60_000).map(|n| format!("{n}\n")).collect();
        assert!(stdout == expected, "{} bytes", stdout.len());
        assert_eq!((stderr.as_str(), code), ("1\n2\n3\n4\n5\n", 1));
        pod.exit(id).await;
    }
    pod.shutdown().await;
    world
}
