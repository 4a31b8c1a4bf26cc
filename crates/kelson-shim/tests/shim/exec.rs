//! Running further processes in containers.

use std::time::{Duration, Instant};

use kelson_shim::client::{Output, ShimError};
use kelson_shim::proto::{ExecRequest, RefusalKind};
use libtest_mimic::Trial;

use crate::world::{Pod, SOON, World, is_alive, trial, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("exec_gives_output_and_code", output_and_code),
        trial("exec_reads_its_input", input),
        trial("exec_failures_are_told", failures),
        trial("a_timed_out_exec_is_killed_with_all_it_started", times_out),
        trial("an_abandoned_exec_is_killed_with_all_it_started", abandoned),
        trial("held_output_is_cut_after_the_end", held_output),
        trial("a_slow_reader_slows_the_process", slow_reader),
        trial("exec_with_a_terminal", terminal),
        trial("an_exec_ends_with_its_container", ends_with_container),
        trial("many_execs_at_once", many),
        trial("a_terminal_has_its_size_and_gets_others", sizes),
        trial(
            "the_end_of_input_ends_the_reader_of_a_terminal",
            terminal_input_ends,
        ),
        trial("a_detached_exec_lives_on_without_its_client", detached),
        trial("a_detached_terminal_hangs_up", hangs_up),
        trial("detached_execs_end_with_their_container", detached_end),
        trial("clients_of_execs_that_vanish_leave_nothing", vanish),
        trial("execs_run_during_the_grace_of_a_stop", grace),
    ]
}

async fn output_and_code(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let result = pod.exec(id, "echo out; echo err >&2; exit 9").await;
    assert_eq!(
        (&result.stdout[..], &result.stderr[..]),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(
        (
            result.exit.exit_code,
            result.exit.signal,
            result.exit.timed_out
        ),
        (9, None, false)
    );
    let result = pod.exec(id, "kill -9 $$").await;
    assert_eq!((result.exit.exit_code, result.exit.signal), (137, Some(9)));
    let result = pod.exec(id, "seq 1 200000").await;
    let all: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(result.stdout == all.as_bytes()[..1 << 20]);
    let result = pod.exec(id, "hostname").await;
    assert_eq!(result.stdout, b"the-pod\n");
    pod.shutdown().await;
    world
}

async fn input(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let mut request = pod.exec_request(id, &["sh", "-c", "sleep 0.2; cat; echo end"]);
    request.stdin = true;
    let mut session = pod.shim.exec(request, SOON).await.unwrap();
    let mut stdin = session.take_stdin().unwrap();
    assert!(session.take_stdin().is_none());
    let sent: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    let writing = async {
        stdin.write(&sent).await.unwrap();
        stdin.close().await.unwrap();
    };
    let (result, ()) = tokio::join!(session.collect(1 << 20, SOON), writing);
    let result = result.unwrap();
    assert!(result.stdout.strip_suffix(b"end\n").unwrap() == sent);

    // A process that does not read its input does not stop the call.
    let mut request = pod.exec_request(id, &["true"]);
    request.stdin = true;
    let mut session = pod.shim.exec(request, SOON).await.unwrap();
    let mut stdin = session.take_stdin().unwrap();
    let (result, _) = tokio::join!(session.collect(1 << 20, SOON), stdin.write(&sent));
    assert_eq!(result.unwrap().exit.exit_code, 0);
    pod.shutdown().await;
    world
}

async fn failures(world: World) -> World {
    let mut pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    for (program, expected) in [
        ("/bin/nothing", RefusalKind::CommandNotFound),
        ("/bin/data", RefusalKind::CommandNotExecutable),
    ] {
        let error = pod
            .shim
            .exec(pod.exec_request(id, &[program]), SOON)
            .await
            .unwrap_err();
        assert_eq!(error.refusal(), Some(expected), "{error}");
    }
    pod.shim.signal(id, 9, false, SOON).await.unwrap();
    pod.exit(id).await;
    let error = pod
        .shim
        .exec(pod.exec_request(id, &["true"]), SOON)
        .await
        .unwrap_err();
    assert_eq!(error.refusal(), Some(RefusalKind::NotRunning), "{error}");
    pod.shutdown().await;
    world
}

/// Starts grandchildren in sessions of their own; each says its number in the host's terms.
const TREE: &str = "setsid sh -c 'echo up; exec sleep 1000' & \
                    (setsid sh -c 'setsid sleep 1000 & echo up; sleep 1000' &) ; sleep 1000";

fn sleepers(pod: &Pod, id: kelson_shim::ids::ContainerId) -> Vec<u32> {
    let hierarchy = kelson_cgroup::Hierarchy::detect().unwrap();
    let path = format!("{}/{id}", pod.cgroup);
    kelson_cgroup::Cgroup::new(&hierarchy, &path)
        .unwrap()
        .pids()
        .unwrap()
}

async fn times_out(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let before = sleepers(&pod, id);
    let mut request = pod.exec_request(id, &["sh", "-c", TREE]);
    request.timeout_ms = Some(500);
    let begin = Instant::now();
    let result = pod
        .shim
        .exec(request, SOON)
        .await
        .unwrap()
        .collect(1000, SOON)
        .await
        .unwrap();
    let took = begin.elapsed();
    assert!(
        took >= Duration::from_millis(500) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert!(result.exit.timed_out);
    assert_eq!(result.stdout, b"up\nup\n");
    assert_eq!(sleepers(&pod, id), before);
    assert_eq!(
        pod.exec(id, "echo still here").await.stdout,
        b"still here\n"
    );
    pod.shutdown().await;
    world
}

async fn abandoned(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let before = sleepers(&pod, id);
    let request = pod.exec_request(id, &["sh", "-c", TREE]);
    let mut session = pod.shim.exec(request, SOON).await.unwrap();
    let mut output = Vec::new();
    while output != b"up\nup\n" {
        let Output::Stdout(bytes) = session.next().await.unwrap() else {
            panic!()
        };
        output.extend(bytes);
    }
    assert!(sleepers(&pod, id).len() > before.len());
    drop(session);
    wait_until("all are killed", || sleepers(&pod, id) == before).await;
    pod.shutdown().await;
    world
}

async fn held_output(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let begin = Instant::now();
    let result = pod.exec(id, "setsid sleep 1000 & echo done").await;
    let took = begin.elapsed();
    assert_eq!(
        (&result.stdout[..], result.exit.exit_code),
        (&b"done\n"[..], 0)
    );
    assert!(took < Duration::from_secs(2), "{took:?}");
    // What was left behind on purpose lives on.
    assert_eq!(sleepers(&pod, id).len(), 2);
    pod.shutdown().await;
    world
}

async fn slow_reader(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let script = "seq 1 1000000; echo finished > /tmp/finished";
    let request = pod.exec_request(id, &["sh", "-c", script]);
    let mut session = pod.shim.exec(request, SOON).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_ne!(
        pod.exec(id, "cat /tmp/finished").await.exit.exit_code,
        0,
        "it ran ahead"
    );
    let mut output = Vec::new();
    let exit = loop {
        match session.next().await.unwrap() {
            Output::Stdout(bytes) => {
                assert!(bytes.len() <= 64 << 10);
                output.extend(bytes);
            }
            Output::Stderr(_) => panic!(),
            Output::Exited(exit) => break exit,
        }
    };
    assert_eq!(exit.exit_code, 0);
    let all: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    assert!(output == all.as_bytes());

    // All that was written before the end is delivered, however late it is read.
    let request = pod.exec_request(id, &["sh", "-c", "seq 1 40000"]);
    let mut session = pod.shim.exec(request, SOON).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut output = Vec::new();
    while let Output::Stdout(bytes) = session.next().await.unwrap() {
        output.extend(bytes);
    }
    let all: String = (1..=40_000).map(|n| format!("{n}\n")).collect();
    assert!(output == all.as_bytes());
    pod.shutdown().await;
    world
}

async fn terminal(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let mut request = pod.exec_request(id, &["sh", "-c", "tty; read x; echo \"<$x>\""]);
    request.process.set_terminal(Some(true));
    request.stdin = true;
    let mut session = pod.shim.exec(request, SOON).await.unwrap();
    let mut stdin = session.take_stdin().unwrap();
    stdin.write(b"typed\n").await.unwrap();
    let result = session.collect(1000, SOON).await.unwrap();
    let text = String::from_utf8(result.stdout).unwrap();
    // The echo of the input may come between a line and its end.
    assert!(
        text.contains("/dev/pts/0") && text.contains("<typed>\r\n"),
        "{text:?}"
    );
    assert_eq!(result.exit.exit_code, 0);
    pod.shutdown().await;
    world
}

async fn ends_with_container(world: World) -> World {
    let mut pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let request = pod.exec_request(id, &["sh", "-c", "echo up; sleep 1000"]);
    let mut session = pod.shim.exec(request, SOON).await.unwrap();
    let pid = session.started().pid;
    assert_eq!(
        session.next().await.unwrap(),
        Output::Stdout(b"up\n".to_vec())
    );
    assert!(is_alive(pid));
    pod.shim.signal(id, 9, false, SOON).await.unwrap();
    let Output::Exited(exit) = session.next().await.unwrap() else {
        panic!()
    };
    assert_eq!(exit.exit_code, 137);
    pod.exit(id).await;
    let request = pod.exec_request(id, &["true"]);
    assert!(matches!(
        pod.shim.exec(request, SOON).await,
        Err(ShimError::Refused(_))
    ));
    pod.shutdown().await;
    world
}

async fn many(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let runs = (0..30).map(|n| {
        let (shim, request) = (
            pod.shim.clone(),
            pod.exec_request(id, &["sh", "-c", &format!("echo {n}; exit {n}")]),
        );
        tokio::spawn(async move {
            let result = shim
                .exec(request, SOON)
                .await
                .unwrap()
                .collect(100, SOON)
                .await
                .unwrap();
            assert_eq!(result.stdout, format!("{n}\n").into_bytes());
            assert_eq!(result.exit.exit_code, n);
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
    let begin = Instant::now();
    for _ in 0..50 {
        let request = pod.exec_request(id, &["true"]);
        pod.shim
            .exec(request, SOON)
            .await
            .unwrap()
            .collect(100, SOON)
            .await
            .unwrap();
    }
    eprintln!("exec of true: {:?} each", begin.elapsed() / 50);
    pod.shutdown().await;
    world
}

fn terminal_request(pod: &Pod, id: kelson_shim::ids::ContainerId, script: &str) -> ExecRequest {
    let mut request = pod.exec_request(id, &["sh", "-c", script]);
    request.process.set_terminal(Some(true));
    request.stdin = true;
    request.detach = true;
    request
}

async fn sizes(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let script =
        "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.02; done";
    let mut request = terminal_request(&pod, id, script);
    let size = serde_json::json!({ "height": 12, "width": 34 });
    request
        .process
        .set_console_size(serde_json::from_value(size).unwrap());
    let mut session = pod.shim.exec(request, SOON).await.unwrap();
    let resizer = session.resizer();
    let mut text = String::new();
    while !text.contains("ready\r\n") {
        let Output::Stdout(bytes) = session.next().await.unwrap() else {
            panic!()
        };
        text.push_str(&String::from_utf8(bytes).unwrap());
    }
    assert!(text.starts_with("12 34\r\n"), "{text:?}");
    // Zeros change nothing, so that the trap is not run by them.
    resizer.resize(0, 9).await.unwrap();
    resizer.resize(9, 0).await.unwrap();
    resizer.resize(50, 132).await.unwrap();
    let result = session.collect(1000, SOON).await.unwrap();
    let text = String::from_utf8(result.stdout).unwrap();
    assert_eq!((text.as_str(), result.exit.exit_code), ("50 132\r\n", 3));

    // Without a terminal there is nothing to change.
    let session = pod
        .shim
        .exec(pod.exec_request(id, &["sleep", "0.3"]), SOON)
        .await
        .unwrap();
    session.resizer().resize(5, 5).await.unwrap();
    assert_eq!(session.collect(10, SOON).await.unwrap().exit.exit_code, 0);
    pod.shutdown().await;
    world
}

async fn terminal_input_ends(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    for (typed, seen) in [("whole\n", "whole\r\nwhole\r\n"), ("half", "halfhalf")] {
        let request = terminal_request(&pod, id, "cat; exit 4");
        let mut session = pod.shim.exec(request, SOON).await.unwrap();
        let mut stdin = session.take_stdin().unwrap();
        stdin.write(typed.as_bytes()).await.unwrap();
        stdin.close().await.unwrap();
        let result = session.collect(1000, SOON).await.unwrap();
        assert_eq!(result.exit.exit_code, 4);
        assert_eq!(String::from_utf8(result.stdout).unwrap(), seen);
    }
    pod.shutdown().await;
    world
}

async fn detached(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let before = sleepers(&pod, id);
    let script = "echo up; cat > /dev/null; busybox seq 1 500000; echo done > /tmp/done; sleep 0.3";
    let mut request = pod.exec_request(id, &["sh", "-c", script]);
    request.stdin = true;
    request.detach = true;
    let mut session = pod.shim.exec(request, SOON).await.unwrap();
    let stdin = session.take_stdin();
    assert_eq!(
        session.next().await.unwrap(),
        Output::Stdout(b"up\n".to_vec())
    );
    drop(session);
    // The end of its input lets it go on, and what it writes does not stop it.
    let begin = Instant::now();
    while pod.exec(id, "cat /tmp/done").await.exit.exit_code != 0 {
        assert!(begin.elapsed() < SOON, "it has not gone on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(stdin);
    wait_until("it is reaped", || sleepers(&pod, id) == before).await;

    // The same for one whose output was waiting already.
    let mut request = pod.exec_request(id, &["sh", "-c", "busybox seq 1 500000; echo > /tmp/more"]);
    request.detach = true;
    let session = pod.shim.exec(request, SOON).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_ne!(pod.exec(id, "cat /tmp/more").await.exit.exit_code, 0);
    drop(session);
    wait_until("it is reaped", || sleepers(&pod, id) == before).await;
    assert_eq!(pod.exec(id, "cat /tmp/more").await.exit.exit_code, 0);
    pod.shutdown().await;
    world
}

async fn hangs_up(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let before = sleepers(&pod, id);
    let request = terminal_request(
        &pod,
        id,
        // One that reads may see the end of its input first.
        "trap 'echo > /tmp/hup; exit' HUP; echo up; while :; do sleep 0.02; done",
    );
    let mut session = pod.shim.exec(request, SOON).await.unwrap();
    session.next().await.unwrap();
    drop(session);
    wait_until("it is gone", || sleepers(&pod, id) == before).await;
    assert_eq!(pod.exec(id, "cat /tmp/hup").await.exit.exit_code, 0);
    pod.shutdown().await;
    world
}

async fn detached_end(world: World) -> World {
    let mut pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let script = "trap '' TERM HUP; echo up; (setsid sleep 1000 &); sleep 1000";
    for tty in [false, true] {
        let mut request = terminal_request(&pod, id, script);
        request.process.set_terminal(Some(tty));
        let mut session = pod.shim.exec(request, SOON).await.unwrap();
        session.next().await.unwrap();
    }
    assert!(sleepers(&pod, id).len() > 3);
    pod.shim.signal(id, 9, false, SOON).await.unwrap();
    assert_eq!(pod.exit(id).await.exit_code, 137);
    wait_until("all are gone", || sleepers(&pod, id).is_empty()).await;
    pod.shutdown().await;
    world
}

async fn vanish(world: World) -> World {
    let pod = world.pod().await;
    let id = pod.sh("sleep 1000").await.id;
    let before = sleepers(&pod, id);
    let fds = format!("/proc/{}/fd", pod.ready.pid);
    let count = || std::fs::read_dir(&fds).unwrap().count();
    let open = count();
    for round in 0..40_u32 {
        let mut request = match round % 2 {
            0 => terminal_request(&pod, id, "cat"),
            _ => pod.exec_request(id, &["cat"]),
        };
        (request.stdin, request.detach) = (true, true);
        // Before it runs, at some moment of its start.
        if round % 4 < 2 {
            let begin = tokio::time::timeout(
                Duration::from_micros(u64::from(round) * 50),
                pod.shim.exec(request, SOON),
            );
            let _ = begin.await;
            continue;
        }
        let mut session = pod.shim.exec(request, SOON).await.unwrap();
        let mut stdin = session.take_stdin().unwrap();
        // In the middle of a write that nobody reads the echo of.
        let block = [b'x', b'\n'].repeat(1 << 20);
        let write = tokio::time::timeout(Duration::from_millis(20), stdin.write(&block));
        let _ = write.await;
    }
    wait_until("all processes are gone", || sleepers(&pod, id) == before).await;
    // Two cgroups with a descriptor or two are kept for the next execs.
    wait_until("all descriptors are closed", || count() <= open + 8).await;
    assert_eq!(pod.exec(id, "echo hi").await.stdout, b"hi\n");
    pod.shutdown().await;
    world
}

async fn grace(world: World) -> World {
    let mut pod = world.pod().await;
    let id = pod
        .sh("trap 'echo > /tmp/asked' TERM; while :; do sleep 0.05; done")
        .await
        .id;
    tokio::time::sleep(Duration::from_millis(200)).await;
    pod.shim.signal(id, 15, false, SOON).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(
        pod.exec(id, "cat /tmp/asked; echo hi").await.stdout,
        b"\nhi\n"
    );
    pod.shim.signal(id, 9, false, SOON).await.unwrap();
    pod.exit(id).await;
    let request = pod.exec_request(id, &["true"]);
    let error = pod.shim.exec(request, SOON).await.unwrap_err();
    assert_eq!(error.refusal(), Some(RefusalKind::NotRunning), "{error}");
    pod.shutdown().await;
    world
}
