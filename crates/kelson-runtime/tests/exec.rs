//! Further processes in running containers, terminals, seccomp filters.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use common::{World, alone, sh};
use kelson_runtime::{Kind, LaunchError, Stdio, Step, seccomp};
use serde_json::json;

#[test]
fn a_further_process_is_in_the_user_namespace() {
    alone(|| {
        let mut world = World::new("touch /tmp/mark; echo up; sleep 100");
        let namespaces = world.spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 5000}]);
        world.spec["linux"]["uidMappings"] = map.clone();
        world.spec["linux"]["gidMappings"] = map;
        for dir in ["", "tmp"] {
            let dir = world.root().join(dir);
            std::os::unix::fs::chown(dir, Some(100_000), Some(100_000)).unwrap();
        }
        let mut running = world.start().unwrap();
        assert_eq!(running.line(), "up");
        let script = "id -u; id -g; id -G; stat -c %u /tmp/mark; echo out > /dev/stdout; \
                      grep CapEff /proc/self/status; readlink /proc/self/ns/user";
        let changes = json!({"args": sh(script),
            "user": {"uid": 1000, "gid": 1001, "additionalGids": [7]}});
        let finished = world.exec(&running, changes).unwrap().finish();
        let pid = running.launched.pid;
        let user = std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        let expected = format!(
            "1000\n1001\n1001 7\n0\nout\nCapEff:\t0000000000000000\n{}\n",
            user.display()
        );
        assert_eq!(finished.out, expected, "{finished:?}");
        let nobody = json!({"args": sh("true"), "user": {"uid": 5000, "gid": 0}});
        let Err(LaunchError::Step(error)) = world.exec(&running, nobody) else {
            panic!("a user that is not mapped")
        };
        assert!(error.what.contains("user 5000"), "{error}");
    });
}

#[test]
fn a_further_process_is_inside() {
    alone(|| {
        let mut world = World::new("touch /tmp/mark; echo up; sleep 100");
        world.spec["process"]["noNewPrivileges"] = json!(true);
        let mut running = world.start().unwrap();
        assert_eq!(running.line(), "up");
        let script = "hostname; ls /tmp; grep -E 'NoNew|CapEff' /proc/self/status; \
                      for n in mnt pid net ipc uts cgroup; do \
                      test $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) || echo $n; done; \
                      echo $A; pwd; ls /proc/self/fd; exit 5";
        let changes = json!({"args": sh(script), "env": ["PATH=/bin", "A=b"], "cwd": "/tmp"});
        let finished = world.exec(&running, changes).unwrap().finish();
        let expected =
            "box\nmark\nCapEff:\t00000000080004eb\nNoNewPrivs:\t1\nb\n/tmp\n0\n1\n2\n3\n";
        assert_eq!(finished.out, expected, "{finished:?}");
        assert_eq!(finished.code, 5);
        // The caller is where it was.
        let own = std::fs::read_link("/proc/self/ns/pid_for_children").unwrap();
        assert_eq!(own, std::fs::read_link("/proc/self/ns/pid").unwrap());
    });
}

#[test]
fn a_further_process_is_in_the_cgroup() {
    alone(|| {
        let world = World::new("sleep 100");
        let running = world.start().unwrap();
        let further = world
            .exec(&running, json!({"args": ["sleep", "100"]}))
            .unwrap();
        let pids = world.cgroup.pids().unwrap();
        assert!(pids.contains(&further.launched.pid), "{pids:?}");
        // The first process of a PID namespace ends when all others of it have been reaped.
        world.cgroup.kill(Duration::from_secs(10)).unwrap();
        let ended = further.wait();
        assert_eq!((ended, running.wait()), (137, 137));
    });
}

#[test]
fn a_further_program_that_is_missing_is_told() {
    alone(|| {
        let world = World::new("sleep 100");
        let running = world.start().unwrap();
        let Err(LaunchError::Step(error)) = world.exec(&running, json!({"args": ["nothing"]}))
        else {
            panic!("it started")
        };
        assert_eq!(
            (error.step, error.kind),
            (Step::Command, Kind::CommandNotFound)
        );
    });
}

#[test]
fn a_container_that_has_ended_is_not_entered() {
    alone(|| {
        let world = World::new("true");
        let running = world.start().unwrap();
        assert_eq!(running.wait(), 0);
        let error = world.exec(&running, json!({})).err().unwrap();
        assert!(matches!(error, LaunchError::System { .. }), "{error:?}");
    });
}

fn read_all(master: File) -> String {
    let mut master = master;
    let mut all = Vec::new();
    let mut buffer = [0; 1024];
    // The end of a terminal is EIO.
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        all.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8(all).unwrap().replace('\r', "")
}

#[test]
fn a_terminal_is_the_containers_own() {
    alone(|| {
        let mut world = World::new(
            "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo three; \
             stat -c '%F %U' /dev/console; echo hi > /dev/tty; read line; echo got $line",
        );
        world.spec["process"]["consoleSize"] = json!({"height": 33, "width": 99});
        let mut running = world.start_with_terminal().unwrap();
        let mut master = File::from(running.terminal.take().unwrap());
        master.write_all(b"word\n").unwrap();
        let code = running.wait();
        let text = read_all(master);
        assert_eq!(code, 0, "{text}");
        for expected in [
            "/dev/pts/0\n",
            "33 99\n",
            "three\n",
            "character special",
            "hi\n",
            "got word\n",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    });
}

#[test]
fn a_further_process_gets_a_terminal() {
    alone(|| {
        let world = World::new("sleep 100");
        let running = world.start().unwrap();
        let changes = json!({"args": sh("tty; stty size"),
            "consoleSize": {"height": 10, "width": 20}});
        let mut further = world
            .exec_with(&running, changes, Stdio::Terminal, None)
            .unwrap();
        let master = File::from(further.terminal.take().unwrap());
        assert_eq!(further.wait(), 0);
        assert_eq!(read_all(master), "/dev/pts/0\n10 20\n");
    });
}

#[test]
fn a_terminal_needs_a_devpts() {
    alone(|| {
        let mut world = World::new("true");
        // A FIFO and a file where the terminal should come from.
        world.spec["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|m| m["destination"] != "/dev/pts");
        let error = world.start_with_terminal().err().unwrap();
        assert!(matches!(error, LaunchError::Step(e) if e.step == Step::Console));
    });
}

#[test]
fn a_filter_denies() {
    alone(|| {
        for no_new_privileges in [true, false] {
            let mut world = World::new("mkdir /tmp/x; echo $?; grep Seccomp: /proc/self/status");
            let filter = serde_json::from_value(json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 95}],
            }))
            .unwrap();
            world.seccomp = Some(seccomp::compile(&filter).unwrap());
            world.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            let finished = world.run();
            assert_eq!(finished.out, "1\nSeccomp:\t2\n", "{finished:?}");
            assert!(finished.err.contains("not supported"), "{finished:?}");
        }
    });
}

#[test]
fn the_default_profile_lets_a_shell_work_and_denies_mounting() {
    alone(|| {
        let mut world = World::new("echo works; mount -t tmpfs x /tmp; echo $?");
        let capabilities = [].into_iter().collect();
        let profile = seccomp::default_profile(&capabilities);
        world.seccomp = Some(seccomp::compile(&profile).unwrap());
        let mut running = world.start().unwrap();
        assert_eq!(running.line(), "works");
        let finished = running.finish();
        assert_ne!(finished.out.trim(), "0", "{finished:?}");
    });
}

#[test]
fn a_gate_holds_the_program_back() {
    alone(|| {
        use rustix::net::*;
        let world = World::new("echo ran");
        let path = world.dir.path().join("gate");
        let address = SocketAddrUnix::new(&path).unwrap();
        let socket = || {
            socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )
        };
        let gate = socket().unwrap();
        bind(&gate, &address).unwrap();
        listen(&gate, 1).unwrap();
        let (stdio, out) = common::pipes();
        let options = kelson_runtime::Options {
            gate: Some(gate),
            ..Default::default()
        };
        let running = world.start_with(stdio, Some(out), options).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", running.launched.pid)).unwrap();
        assert_ne!(comm.trim(), "sh");
        let starter = socket().unwrap();
        connect(&starter, &address).unwrap();
        let mut progress = kelson_runtime::Progress::from_socket(starter);
        let event = progress.wait(None).unwrap();
        assert!(
            matches!(event, kelson_runtime::Event::Executed),
            "{event:?}"
        );
        assert_eq!(running.finish().out, "ran\n");
    });
}

#[test]
fn a_user_namespace_is_entered() {
    alone(|| {
        let mut world = World::new("sleep 100");
        std::os::unix::fs::chown(world.root(), Some(100_000), Some(100_000)).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(world.dir.path(), open).unwrap();
        world.spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        common::merge(
            &mut world.spec["linux"],
            &json!({"uidMappings": map, "gidMappings": map}),
        );
        world.spec["process"]["oomScoreAdj"] = json!(500);
        let running = world.start().unwrap();
        assert!(
            running.notes.iter().all(|note| !note.contains("oom")),
            "{:?}",
            running.notes
        );
        let script = "id -u; readlink /proc/self/ns/user; cat /proc/1/oom_score_adj";
        let finished = world
            .exec(&running, json!({"args": sh(script)}))
            .unwrap()
            .finish();
        let path = format!("/proc/{}/ns/user", running.launched.pid);
        let namespace = std::fs::read_link(path).unwrap();
        let expected = format!("0\n{}\n500\n", namespace.display());
        assert_eq!(finished.out, expected, "{finished:?}");
        let status = format!("/proc/{}/status", running.launched.pid);
        assert!(
            std::fs::read_to_string(status)
                .unwrap()
                .contains("Uid:\t100000")
        );
    });
}

#[test]
fn a_working_directory_outside_is_refused() {
    alone(|| {
        // The link leads to a descriptor of the launching process, as in CVE-2024-21626.
        let leak = File::open("/").unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        use std::os::fd::AsRawFd;
        let cwd = format!("/proc/self/fd/{}", leak.as_raw_fd());
        let world = World::new("sleep 100");
        let running = world.start().unwrap();
        let result = world.exec(&running, json!({"args": sh("ls"), "cwd": cwd}));
        let Err(LaunchError::Step(error)) = result else {
            panic!("it started")
        };
        assert_eq!(error.step, Step::Command);
        assert!(error.what.contains("outside"), "{error}");
    });
}
