//! Starting and ending containers.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use kelson_shim::client::{Shim, ShimError, ShimEvent};
use kelson_shim::ids::ContainerId;
use kelson_shim::proto::{ContainerState, Exit, RefusalKind, SeccompFilter, StdinPolicy};
use libtest_mimic::Trial;

use crate::world::{SOON, World, is_alive, trial, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_container_starts_and_its_exit_is_told", starts_and_exits),
        trial("a_failed_start_is_told_and_leaves_nothing", failed_starts),
        trial("signals_reach_a_container", signals),
        trial("standard_input_follows_its_policy", stdin_policy),
        trial(
            "filters_and_priorities_hold_for_execs_too",
            filters_and_priorities,
        ),
        trial(
            "a_killed_container_takes_all_its_processes_along",
            takes_all_along,
        ),
        trial("running_out_of_memory_is_told", out_of_memory),
        trial("the_daemon_may_leave_and_come_back", daemon_leaves),
        trial("shims_survive_their_zygote", zygote_dies),
        trial("what_is_known_is_forgotten_on_request", forgets),
    ]
}

fn kind<T: std::fmt::Debug>(result: Result<T, ShimError>) -> RefusalKind {
    result.unwrap_err().refusal().unwrap()
}

async fn starts_and_exits(world: World) -> World {
    let mut pod = world.pod().await;
    let request = pod.request(&["sh", "-c", "echo out; echo err >&2; hostname; exit 7"]);
    let started = pod.start(&request).await.unwrap();
    let exit = pod.exit(request.id).await;
    assert_eq!(
        (exit.exit_code, exit.signal, exit.oom_killed),
        (7, None, false)
    );
    assert!(
        started.started_at > 1_700_000_000_000_000_000 && exit.finished_at > started.started_at
    );
    let log = std::fs::read_to_string(request.log.as_ref().unwrap()).unwrap();
    let mut lines: Vec<&str> = log.lines().map(|line| &line[31..]).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["stderr F err", "stdout F out", "stdout F the-pod"]);
    let record = pod.dir.join(format!("containers/{}/exit.json", request.id));
    let record: Exit = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    assert_eq!(record, exit);
    let state = pod.shim.state(SOON).await.unwrap();
    assert_eq!(state.shim, pod.ready);
    let expected = ContainerState {
        id: request.id,
        started,
        exit: Some(exit),
        log_bytes_lost: 0,
    };
    assert_eq!(state.containers, [expected]);
    assert_eq!(kind(pod.start(&request).await), RefusalKind::Exists);
    pod.shutdown().await;
    world
}

async fn failed_starts(world: World) -> World {
    let pod = world.pod().await;
    for (args, expected) in [
        (["/bin/nothing"], RefusalKind::CommandNotFound),
        (["nothing"], RefusalKind::CommandNotFound),
        (["/bin/data"], RefusalKind::CommandNotExecutable),
    ] {
        let request = pod.request(&args);
        let error = pod.start(&request).await.unwrap_err();
        assert_eq!(error.refusal(), Some(expected), "{error}");
        assert!(!pod.dir.join(format!("containers/{}", request.id)).exists());
    }
    let mut request = pod.request(&["true"]);
    request.cgroup = "/../x".to_owned();
    assert_eq!(kind(pod.start(&request).await), RefusalKind::Invalid);
    let mut request = pod.request(&["true"]);
    request.log = Some("/nowhere/at/all.log".into());
    assert_eq!(kind(pod.start(&request).await), RefusalKind::Setup);
    let mut request = pod.request(&["true"]);
    request.timeout_ms = 0;
    assert_eq!(kind(pod.start(&request).await), RefusalKind::Timeout);
    request.timeout_ms = 10_000;
    pod.start(&request).await.unwrap();
    pod.shutdown().await;
    world
}

async fn stdin_policy(world: World) -> World {
    let mut pod = world.pod().await;
    let request = pod.request(&["cat"]);
    pod.start(&request).await.unwrap();
    assert_eq!(pod.exit(request.id).await.exit_code, 0);
    let mut request = pod.request(&["cat"]);
    request.stdin = StdinPolicy::Open;
    let started = pod.start(&request).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(is_alive(started.pid));
    pod.shutdown().await;
    world
}

/// What the shim has set for itself is not for what it starts: signals, priority. (The shell ignores
/// SIGQUIT by itself.)
async fn filters_and_priorities(world: World) -> World {
    let mut pod = world.pod().await;
    let profile = kelson_runtime::seccomp::default_profile(&HashSet::new());
    let filter = SeccompFilter(
        kelson_runtime::seccomp::compile(&profile)
            .unwrap()
            .to_bytes(),
    );
    let script = "cat /proc/self/oom_score_adj; while read a b; do case $a in Seccomp:|SigBlk:|SigIgn:) \
                  echo $a $b;; esac; done < /proc/self/status";
    let expected = "500\nSigBlk: 0000000000000000\nSigIgn: 0000000000000004\nSeccomp: 2\n";
    let script_and_sleep = format!("{script}; sleep 1000");
    let mut request = pod.request(&["sh", "-c", &script_and_sleep]);
    let process = request.spec.process_mut().as_mut().unwrap();
    process
        .set_oom_score_adj(Some(500))
        .set_no_new_privileges(Some(true));
    request.seccomp = Some(filter.clone());
    pod.start(&request).await.unwrap();
    let log = request.log.clone().unwrap();
    wait_until("all is told", || {
        std::fs::read_to_string(&log).unwrap().lines().count() == 4
    })
    .await;
    let text: String = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| format!("{}\n", &line[40..]))
        .collect();
    assert_eq!(text, expected);
    let mut exec = pod.exec_request(request.id, &["sh", "-c", script]);
    exec.process.set_no_new_privileges(Some(true));
    exec.seccomp = Some(filter);
    let result = pod
        .shim
        .exec(exec, SOON)
        .await
        .unwrap()
        .collect(1000, SOON)
        .await
        .unwrap();
    assert_eq!(String::from_utf8(result.stdout).unwrap(), expected);

    let mut broken = pod.request(&["true"]);
    broken.seccomp = Some(SeccompFilter(vec![1, 2, 3]));
    assert_eq!(kind(pod.start(&broken).await), RefusalKind::Invalid);

    // Without a priority of its own, a container does not get its shim's.
    let plain = pod.request(&["cat", "/proc/self/oom_score_adj"]);
    pod.start(&plain).await.unwrap();
    pod.exit(plain.id).await;
    assert!(
        std::fs::read_to_string(plain.log.unwrap())
            .unwrap()
            .ends_with(" F 0\n")
    );
    pod.shutdown().await;
    world
}

async fn signals(world: World) -> World {
    let mut pod = world.pod().await;
    let request = pod
        .sh("trap 'echo got; exit 3' TERM; echo up; while :; do sleep 0.05; done")
        .await;
    let log = request.log.clone().unwrap();
    wait_until("up", || {
        std::fs::read_to_string(&log).unwrap().contains("up")
    })
    .await;
    assert_eq!(
        kind(pod.shim.signal(request.id, 99, false, SOON).await),
        RefusalKind::Invalid
    );
    pod.shim.signal(request.id, 15, false, SOON).await.unwrap();
    assert_eq!(pod.exit(request.id).await.exit_code, 3);
    assert!(
        std::fs::read_to_string(&log)
            .unwrap()
            .contains("stdout F got")
    );
    assert_eq!(
        kind(pod.shim.signal(request.id, 15, false, SOON).await),
        RefusalKind::NotRunning
    );
    let unknown = ContainerId::random().unwrap();
    assert_eq!(
        kind(pod.shim.signal(unknown, 15, false, SOON).await),
        RefusalKind::NotFound
    );
    let request = pod.sh("sleep 1000").await;
    pod.shim.signal(request.id, 9, false, SOON).await.unwrap();
    let exit = pod.exit(request.id).await;
    assert_eq!(
        (exit.exit_code, exit.signal, exit.oom_killed),
        (137, Some(9), false)
    );
    pod.shutdown().await;
    world
}

/// In the host's PID namespace, nothing but the cgroup holds a container's processes together.
async fn takes_all_along(world: World) -> World {
    let mut pod = world.pod().await;
    let mut request = pod.request(&[
        "sh",
        "-c",
        "setsid sh -c 'echo pid $$; exec sleep 1000' & (sleep 1000 &) ; sleep 0.1; echo end; exit 4",
    ]);
    let linux = request.spec.linux_mut().as_mut().unwrap();
    let namespaces = linux.namespaces_mut().as_mut().unwrap();
    namespaces.retain(|n| n.typ() != oci_spec::runtime::LinuxNamespaceType::Pid);
    pod.start(&request).await.unwrap();
    assert_eq!(pod.exit(request.id).await.exit_code, 4);
    let log = std::fs::read_to_string(request.log.unwrap()).unwrap();
    let pid = log
        .split("stdout F pid ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap();
    assert!(!is_alive(pid.parse().unwrap()));
    // Orphans were adopted and reaped.
    let children = format!("/proc/{0}/task/{0}/children", pod.ready.pid);
    wait_until("no child is left", || {
        std::fs::read_to_string(&children)
            .unwrap_or_default()
            .trim()
            .is_empty()
    })
    .await;
    let request = pod
        .sh("trap '' TERM; setsid sleep 1000 & sleep 1000 & wait")
        .await;
    pod.shim.signal(request.id, 9, true, SOON).await.unwrap();
    assert_eq!(pod.exit(request.id).await.signal, Some(9));
    pod.shutdown().await;
    world
}

async fn out_of_memory(world: World) -> World {
    let mut pod = world.pod().await;
    let mut request = pod.request(&["sh", "-c", "x=x; while :; do x=$x$x; done"]);
    let linux = request.spec.linux_mut().as_mut().unwrap();
    let limit = serde_json::json!({ "memory": { "limit": 16 << 20 } });
    linux.set_resources(serde_json::from_value(limit).unwrap());
    pod.start(&request).await.unwrap();
    let exit = pod.exit(request.id).await;
    assert_eq!((exit.exit_code, exit.oom_killed), (137, true));

    // A child is killed, the container lives on and is told of at once.
    let script = "sh -c 'x=x; while :; do x=$x$x; done'; echo went on; sleep 1000";
    let mut living = pod.request(&["sh", "-c", script]);
    living.spec.set_linux(request.spec.linux().clone());
    pod.start(&living).await.unwrap();
    let told = tokio::time::timeout(SOON, pod.events.next()).await.unwrap();
    assert_eq!(
        told,
        ShimEvent::OomKilled {
            container: living.id
        }
    );
    let log = living.log.clone().unwrap();
    wait_until("went on", || {
        std::fs::read_to_string(&log).unwrap().contains("went on")
    })
    .await;
    pod.shim.signal(living.id, 9, true, SOON).await.unwrap();
    assert!(pod.exit(living.id).await.oom_killed);
    pod.shutdown().await;
    world
}

async fn daemon_leaves(mut world: World) -> World {
    let pod = world.pod().await;
    let short = pod.sh("sleep 0.3; echo late; exit 5").await;
    let long = pod.sh("sleep 1000").await;
    drop(pod.events);
    world.zygote = None;
    let log = short.log.clone().unwrap();
    wait_until("late", || {
        std::fs::read_to_string(&log).unwrap().contains("late")
    })
    .await;

    let (shim, state, mut events) = Shim::connect(&pod.dir, SOON).await.unwrap();
    assert_eq!(state.shim, pod.ready);
    let find = |state: &kelson_shim::proto::PodState, id| {
        *state
            .containers
            .iter()
            .find(|container| container.id == id)
            .unwrap()
    };
    if find(&state, short.id).exit.is_none() {
        let ShimEvent::Exited { container, .. } = events.next().await else {
            panic!()
        };
        assert_eq!(container, short.id);
    }
    let state = shim.state(SOON).await.unwrap();
    assert_eq!(find(&state, short.id).exit.unwrap().exit_code, 5);
    assert_eq!(find(&state, long.id).exit, None);
    assert!(is_alive(find(&state, long.id).started.pid));
    shim.signal(long.id, 9, false, SOON).await.unwrap();
    let ShimEvent::Exited { container, exit } = events.next().await else {
        panic!()
    };
    assert_eq!((container, exit.exit_code), (long.id, 137));
    shim.shutdown(SOON).await.unwrap();
    assert_eq!(events.next().await, ShimEvent::Closed);
    let gone = Shim::connect(&pod.dir, SOON).await.unwrap_err();
    assert!(gone.is_gone(), "{gone}");
    shim.shutdown(SOON).await.unwrap();
    world
}

async fn zygote_dies(world: World) -> World {
    let mut pod = world.pod().await;
    let request = pod.sh("sleep 1000").await;
    let zygote = world.zygote.as_ref().unwrap();
    let pid = zygote.pid().unwrap();
    let raw = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    wait_until("the zygote is gone", || !is_alive(pid)).await;
    let other = world.pod().await;
    assert_ne!(zygote.pid(), Some(pid));
    other.sh("true").await;
    other.shutdown().await;
    assert!(pod.exec(request.id, "echo here").await.stdout == b"here\n");
    pod.shim.signal(request.id, 9, false, SOON).await.unwrap();
    pod.exit(request.id).await;
    pod.shutdown().await;
    world
}

async fn forgets(world: World) -> World {
    let mut pod = world.pod().await;
    let request = pod.sh("sleep 1000").await;
    assert_eq!(
        kind(pod.shim.forget(request.id, SOON).await),
        RefusalKind::Invalid
    );
    pod.shim.signal(request.id, 9, false, SOON).await.unwrap();
    pod.exit(request.id).await;
    let dir = pod.dir.join(format!("containers/{}", request.id));
    assert!(dir.exists());
    pod.shim.forget(request.id, SOON).await.unwrap();
    pod.shim.forget(request.id, SOON).await.unwrap();
    assert!(!dir.exists());
    assert!(pod.shim.state(SOON).await.unwrap().containers.is_empty());

    // A shut down pod takes its running containers along, quickly.
    let running = pod.request(&["sh", "-c", "trap '' TERM; sleep 1000"]);
    let started = pod.start(&running).await.unwrap();
    let before = Instant::now();
    pod.shutdown().await;
    assert!(
        before.elapsed() < Duration::from_secs(2),
        "{:?}",
        before.elapsed()
    );
    assert!(!is_alive(started.pid));
    world
}
