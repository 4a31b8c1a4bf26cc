//! Setting pods up and shutting them down.

use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use kelson_shim::proto::{
    Namespace, Refusal, RefusalKind, Reply, Request, Rootfs, SOCKET_NAME, UserNamespace, VERSION,
    frame,
};
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{SOON, World, is_alive, trial, wait_until};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_pod_has_namespaces_of_its_own", namespaces),
        trial("a_pod_on_the_host_shares_its_namespaces", host_namespaces),
        trial("kernel_parameters_are_set_or_refused", sysctls),
        trial("shared_pid_namespaces_have_an_init", shared_pid),
        trial("a_pod_has_a_user_namespace_of_its_own", user_namespace),
        trial(
            "kernel_parameters_are_set_in_a_user_namespace",
            user_sysctls,
        ),
        trial("other_protocol_versions_are_refused", versions),
        trial("broken_frames_are_refused", broken_frames),
        trial("a_shim_that_is_told_to_terminate_ends_its_pod", terminated),
        trial("many_shims_are_forked_at_once", at_once),
        trial("fifty_shims_are_small", fifty),
    ]
}

fn namespace(pid: u32, name: &str) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/ns/{name}"))
        .unwrap()
        .ino()
}

async fn namespaces(world: World) -> World {
    let pod = world.pod().await;
    let own = std::process::id();
    for name in ["net", "ipc", "uts"] {
        assert_ne!(
            namespace(pod.ready.pid, name),
            namespace(own, name),
            "{name}"
        );
    }
    for name in ["mnt", "pid"] {
        assert_eq!(
            namespace(pod.ready.pid, name),
            namespace(own, name),
            "{name}"
        );
    }
    let started = pod.start(&pod.request(&["sleep", "1000"])).await.unwrap();
    for name in ["net", "ipc", "uts"] {
        assert_eq!(
            namespace(pod.ready.pid, name),
            namespace(started.pid, name),
            "{name}"
        );
    }
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&pod.dir), 0o700);
    assert_eq!(mode(&pod.dir.join(SOCKET_NAME)), 0o600);
    assert_eq!(mode(&pod.dir.join("shm")), 0o1777);
    let shm = rustix::fs::statvfs(pod.dir.join("shm")).unwrap();
    assert_eq!(shm.f_blocks * shm.f_frsize, 1 << 20);
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", pod.ready.pid)).unwrap();
    assert_eq!(comm, "kelson-shim\n");
    let fds = std::fs::read_dir(format!("/proc/{}/fd", pod.ready.pid)).unwrap();
    for fd in fds.flatten() {
        let target = std::fs::read_link(fd.path()).unwrap_or_default();
        assert!(!target.starts_with("/memfd"), "{target:?}");
    }
    let dir = pod.dir.clone();
    pod.shutdown().await;
    assert!(!dir.join(SOCKET_NAME).exists());
    world
}

const USERS: (u32, u32, u32) = (0, 300_000, 1000);

fn in_user_namespace(world: &World) -> kelson_shim::proto::PodSetup {
    let mut setup = world.setup();
    setup.user = Some(UserNamespace {
        uids: vec![USERS],
        gids: vec![USERS],
    });
    setup
}

/// A container of the pod on a writable overlay that its root owns.
fn mapped(pod: &crate::world::Pod, script: &str) -> kelson_shim::proto::StartRequest {
    let mut request = pod.request(&["sh", "-c", script]);
    let dir = pod.logs.join(request.id.as_str());
    for name in ["upper", "work"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    let upper = dir.join("upper");
    std::os::unix::fs::chown(&upper, Some(USERS.1), Some(USERS.1)).unwrap();
    request.rootfs = Rootfs::Overlay {
        lower: vec![crate::world::rootfs()],
        upper,
        work: dir.join("work"),
    };
    let map = serde_json::json!([{"containerID": 0, "hostID": USERS.1, "size": USERS.2}]);
    let mut spec = serde_json::to_value(&request.spec).unwrap();
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(serde_json::json!({"type": "user"}));
    request.spec = serde_json::from_value(spec).unwrap();
    request
}

async fn user_namespace(world: World) -> World {
    let mut setup = in_user_namespace(&world);
    setup.namespaces.pid = Namespace::New;
    let mut pod = world.try_pod(&setup).await.unwrap();
    let init = pod.ready.init_pid.unwrap();
    let own = namespace(std::process::id(), "user");
    // The shim is on the host, its namespaces are not the host's.
    assert_eq!(namespace(pod.ready.pid, "user"), own);
    assert_ne!(namespace(init, "user"), own);
    assert_eq!(
        std::fs::metadata(pod.dir.join("shm")).unwrap().uid(),
        USERS.1
    );
    let status = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    assert!(
        status.contains("Uid:\t300000\t300000\t300000\t300000"),
        "{status}"
    );

    let mut request = mapped(&pod, "hostname other; hostname; sleep 1000");
    for namespace in request
        .spec
        .linux_mut()
        .as_mut()
        .unwrap()
        .namespaces_mut()
        .iter_mut()
        .flatten()
    {
        if namespace.typ() == oci_spec::runtime::LinuxNamespaceType::Pid {
            namespace.set_path(Some(format!("/proc/{init}/ns/pid").into()));
        }
    }
    let started = pod.start(&request).await.unwrap();
    for name in ["user", "pid"] {
        assert_eq!(
            namespace(started.pid, name),
            namespace(init, name),
            "{name}"
        );
    }
    for name in ["net", "ipc", "uts"] {
        assert_eq!(
            namespace(started.pid, name),
            namespace(pod.ready.pid, name),
            "{name}"
        );
    }
    let state = pod.shim.state(SOON).await.unwrap();
    assert_eq!(state.containers[0].started.pid, started.pid);
    let result = pod
        .exec(request.id, "cat /proc/self/uid_map; hostname")
        .await;
    let text = String::from_utf8(result.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    // It may not change the name without the capability, which the test's processes lack.
    assert_eq!(words, ["0", "300000", "1000", "the-pod"], "{text}");
    pod.shim.signal(request.id, 9, false, SOON).await.unwrap();
    assert_eq!(pod.exit(request.id).await.signal, Some(9));

    // One that cannot be prepared leaves nothing.
    let mut broken = mapped(&pod, "true");
    broken.rootfs = Rootfs::Path("/nonexistent".into());
    let error = pod.start(&broken).await.unwrap_err();
    assert_eq!(error.refusal(), Some(RefusalKind::Setup), "{error}");
    assert!(error.to_string().contains("/nonexistent"), "{error}");
    pod.shutdown().await;
    wait_until("the init is gone", || !is_alive(init)).await;
    world
}

async fn user_sysctls(world: World) -> World {
    let mut setup = in_user_namespace(&world);
    for (name, value) in [
        ("net.ipv4.ping_group_range", "0 999"),
        ("net.ipv4.ip_unprivileged_port_start", "77"),
        ("kernel.msgmax", "7777"),
    ] {
        setup.sysctls.insert(name.to_owned(), value.to_owned());
    }
    let mut pod = world.try_pod(&setup).await.unwrap();
    let script = "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/msgmax \
                  net/ipv4/ping_group_range";
    let request = mapped(&pod, script);
    pod.start(&request).await.unwrap();
    pod.exit(request.id).await;
    let log = std::fs::read_to_string(request.log.unwrap()).unwrap();
    let values: Vec<&str> = log.lines().map(|line| &line[40..]).collect();
    assert_eq!(values, ["77", "7777", "0\t999"]);
    pod.shutdown().await;

    for (name, value) in [
        ("net.ipv4.ping_group_range", "0 1000"),
        ("kernel.msgmax", "many"),
        ("vm.swappiness", "1"),
    ] {
        let mut setup = in_user_namespace(&world);
        setup.sysctls.insert(name.to_owned(), value.to_owned());
        let error = world.try_pod(&setup).await.err().unwrap();
        assert_eq!(error.refusal(), Some(RefusalKind::Sysctl), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    world
}

async fn host_namespaces(world: World) -> World {
    let mut setup = world.setup();
    setup.namespaces.network = Namespace::Host;
    setup.namespaces.ipc = Namespace::Host;
    setup.namespaces.uts = Namespace::Host;
    setup.shm_size = None;
    let pod = world.try_pod(&setup).await.unwrap();
    for name in ["net", "ipc", "uts"] {
        assert_eq!(
            namespace(pod.ready.pid, name),
            namespace(std::process::id(), name),
            "{name}"
        );
    }
    assert!(!pod.dir.join("shm").exists());
    pod.shutdown().await;
    world
}

async fn sysctls(world: World) -> World {
    let mut setup = world.setup();
    setup.sysctls.insert(
        "net.ipv4.ip_unprivileged_port_start".to_owned(),
        "77".to_owned(),
    );
    setup
        .sysctls
        .insert("kernel.msgmax".to_owned(), "7777".to_owned());
    let mut pod = world.try_pod(&setup).await.unwrap();
    let request = pod
        .sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax")
        .await;
    pod.exit(request.id).await;
    let log = std::fs::read_to_string(request.log.unwrap()).unwrap();
    let values: Vec<&str> = log.lines().map(|line| &line[40..]).collect();
    assert_eq!(values, ["77", "7777"]);
    pod.shutdown().await;

    for (name, value) in [
        ("vm.swappiness", "1"),
        ("net.ipv4.ip_forward", "many"),
        ("kernel.hostname", "x"),
    ] {
        let mut setup = world.setup();
        setup.sysctls.insert(name.to_owned(), value.to_owned());
        let error = world.try_pod(&setup).await.err().unwrap();
        assert_eq!(error.refusal(), Some(RefusalKind::Sysctl), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    world
}

async fn shared_pid(world: World) -> World {
    let mut setup = world.setup();
    setup.namespaces.pid = Namespace::New;
    let mut pod = world.try_pod(&setup).await.unwrap();
    let init = pod.ready.init_pid.unwrap();
    let request = |script: &str| {
        let mut request = pod.request(&["sh", "-c", script]);
        let linux = request.spec.linux_mut().as_mut().unwrap();
        for namespace in linux.namespaces_mut().as_mut().unwrap() {
            if namespace.typ() == oci_spec::runtime::LinuxNamespaceType::Pid {
                namespace.set_path(Some(format!("/proc/{init}/ns/pid").into()));
            }
        }
        request
    };
    let one = request("(setsid sleep 0.2 &) ; echo $$; sleep 1000");
    let started = pod.start(&one).await.unwrap();
    assert_eq!(
        namespace(started.pid, "pid_for_children"),
        namespace(init, "pid")
    );
    let two = request("echo $$; cat /proc/1/comm; kill -9 1; kill -0 1 && echo alive; sleep 0.5");
    pod.start(&two).await.unwrap();
    assert_eq!(pod.exit(two.id).await.exit_code, 0);
    let log = std::fs::read_to_string(two.log.unwrap()).unwrap();
    assert!(
        log.contains("F kelson-init\n") && log.contains("F alive\n"),
        "{log}"
    );
    assert!(!log.contains("F 1\n"), "{log}");
    // The orphan has ended and was reaped by the init.
    let children = format!("/proc/{init}/task/{init}/children");
    wait_until("no orphan is left", || {
        std::fs::read_to_string(&children)
            .unwrap()
            .trim()
            .is_empty()
    })
    .await;
    assert!(is_alive(started.pid));
    pod.shutdown().await;
    assert!(!is_alive(started.pid));
    world
}

async fn ask(pod: &crate::world::Pod, bytes: &[u8]) -> Option<Reply> {
    let path = pod.dir.join(SOCKET_NAME);
    let mut socket = tokio::net::UnixStream::connect(path).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut head = [0; frame::HEADER];
    socket.read_exact(&mut head).await.ok()?;
    let (_, len) = frame::parse_header(head).unwrap();
    let mut payload = vec![0; len];
    socket.read_exact(&mut payload).await.ok()?;
    Some(serde_json::from_slice(&payload).unwrap())
}

async fn versions(world: World) -> World {
    let pod = world.pod().await;
    for version in [0, VERSION + 1] {
        let request = Request {
            version,
            call: kelson_shim::proto::Call::State,
        };
        let reply = ask(&pod, &frame::message(&request).unwrap()).await;
        let Some(Reply::Refused(Refusal { kind, .. })) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(kind, RefusalKind::Version);
    }
    pod.shutdown().await;
    world
}

async fn broken_frames(world: World) -> World {
    let pod = world.pod().await;
    let too_long = [&(frame::MAX_MESSAGE as u32 + 1).to_le_bytes()[..], &[0]].concat();
    for bytes in [
        &too_long[..],
        &[1, 0, 0, 0, 9, 0],
        &[2, 0, 0, 0, 0, b'{', b'}'],
        &[0, 0, 0, 0, 1],
    ] {
        let reply = ask(&pod, bytes).await;
        let Some(Reply::Refused(refusal)) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(refusal.kind, RefusalKind::Invalid);
    }
    assert!(pod.shim.state(SOON).await.is_ok());
    pod.shutdown().await;
    world
}

async fn terminated(world: World) -> World {
    let pod = world.pod().await;
    let started = pod
        .start(&pod.request(&["sh", "-c", "trap '' TERM; sleep 1000"]))
        .await
        .unwrap();
    let shim = rustix::process::Pid::from_raw(pod.ready.pid.cast_signed()).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::TERM).unwrap();
    wait_until("the shim is gone", || !is_alive(pod.ready.pid)).await;
    assert!(!is_alive(started.pid));
    world
}

async fn at_once(world: World) -> World {
    let world = std::sync::Arc::new(world);
    let forks: Vec<_> = (0..20)
        .map(|_| {
            let world = std::sync::Arc::clone(&world);
            tokio::spawn(async move { world.pod().await })
        })
        .collect();
    let mut pods = Vec::new();
    for fork in forks {
        pods.push(fork.await.unwrap());
    }
    let networks: std::collections::BTreeSet<u64> = pods
        .iter()
        .map(|pod| namespace(pod.ready.pid, "net"))
        .collect();
    assert_eq!(networks.len(), 20);
    for pod in pods {
        pod.shutdown().await;
    }
    std::sync::Arc::into_inner(world).unwrap()
}

fn pss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

async fn fifty(world: World) -> World {
    let begin = Instant::now();
    let mut pods = Vec::new();
    for _ in 0..50 {
        pods.push(world.pod().await);
    }
    eprintln!("a shim is ready after {:?}", begin.elapsed() / 50);
    let begin = Instant::now();
    for pod in &pods {
        pod.sh("echo hello; sleep 1000").await;
    }
    eprintln!("a container is started after {:?}", begin.elapsed() / 50);
    for pod in &pods {
        let id = pod.shim.state(SOON).await.unwrap().containers[0].id;
        assert_eq!(pod.exec(id, "echo in").await.stdout, b"in\n");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let all: u64 = pods.iter().map(|pod| pss(pod.ready.pid)).sum();
    eprintln!("50 shims with a container each: {} kB PSS each", all / 50);
    assert!(all / 50 < 300, "{} kB", all / 50);
    let begin = Instant::now();
    for pod in pods {
        pod.shutdown().await;
    }
    eprintln!("a pod is shut down after {:?}", begin.elapsed() / 50);
    world
}
