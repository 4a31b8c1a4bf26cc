//! Containers that really run: namespaces, mounts, devices, credentials, limits.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::{World, alone, merge, sh};
use kelson_cgroup::{Cgroup, Hierarchy};
use kelson_runtime::{Kind, LaunchError, Rootfs, Step};
use serde_json::json;

fn output(world: &World) -> String {
    let finished = world.run();
    assert_eq!(finished.code, 0, "{finished:?}");
    finished.out
}

fn add_mount(world: &mut World, mount: serde_json::Value) {
    world.spec["mounts"].as_array_mut().unwrap().push(mount);
}

#[test]
fn the_exit_code_and_the_output_come_back() {
    alone(|| {
        let finished = World::new("echo out; echo err >&2; exit 7").run();
        assert_eq!(
            (finished.code, finished.out.as_str()),
            (7, "out\n"),
            "{finished:?}"
        );
        assert_eq!(finished.err, "err\n");
    });
}

#[test]
fn namespaces_are_its_own_or_the_callers() {
    alone(|| {
        let script = "for n in mnt pid uts ipc net cgroup user; do readlink /proc/self/ns/$n; done; \
                      hostname; echo $$";
        let mut world = World::new(script);
        let own = |name| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let names = ["mnt", "pid", "uts", "ipc", "net", "cgroup", "user"];
        let out = output(&world);
        let lines: Vec<_> = out.lines().collect();
        for (name, line) in names.iter().zip(&lines) {
            assert_eq!(own(name) == Path::new(line), *name == "user", "{name}");
        }
        assert_eq!(&lines[7..], ["box", "1"]);

        world.spec["hostname"] = json!("");
        world.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}]);
        let out = output(&world);
        for (name, line) in names.iter().zip(out.lines()) {
            assert_eq!(
                own(name) != Path::new(line),
                ["mnt", "pid"].contains(name),
                "{name}"
            );
        }
    });
}

#[test]
fn a_namespace_is_joined_by_its_path() {
    alone(|| {
        let first_world = World::new("sleep 100");
        let first = first_world.start();
        let world = World::new("readlink /proc/self/ns/net; readlink /proc/1/ns/pid; echo $$");
        let first = first.unwrap();
        let pid = first.launched.pid;
        let mut world = world;
        world.spec["linux"]["namespaces"] = json!([
            {"type": "mount"}, {"type": "uts"},
            {"type": "network", "path": format!("/proc/{pid}/ns/net")},
            {"type": "pid", "path": format!("/proc/{pid}/ns/pid")},
        ]);
        let out = output(&world);
        let lines: Vec<_> = out.lines().collect();
        for (name, line) in ["net", "pid"].iter().zip(&lines) {
            let theirs = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
            assert_eq!(theirs, Path::new(line));
        }
        assert_ne!(lines[2], "1");
        // The caller itself stayed where it was.
        let own = fs::read_link("/proc/self/ns/pid_for_children").unwrap();
        assert_eq!(own, fs::read_link("/proc/self/ns/pid").unwrap());
        kelson_sys::process::pidfd_send_signal(
            std::os::fd::AsFd::as_fd(&first.launched.pidfd),
            libc::SIGKILL,
        )
        .unwrap();
        assert_eq!(first.wait(), 128 + libc::SIGKILL);
    });
}

#[test]
fn the_usual_devices_are_there() {
    alone(|| {
        let script = "cd /dev; stat -c '%n %t:%T %a' null zero full random urandom tty; \
                      for l in fd stdin stdout stderr ptmx; do readlink $l; done; \
                      echo x > null; head -c 3 zero | wc -c; test ! -e console && ls core 2>&1";
        let finished = World::new(script).run();
        let expected = "null 1:3 666\nzero 1:5 666\nfull 1:7 666\nrandom 1:8 666\n\
                        urandom 1:9 666\ntty 5:0 666\n/proc/self/fd\n/proc/self/fd/0\n\
                        /proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n3\n";
        assert!(finished.out.starts_with(expected), "{finished:?}");
    });
}

#[test]
fn a_device_of_the_specification_is_made() {
    alone(|| {
        let mut world = World::new("stat -c '%F %t:%T %a %u:%g' /dev/some/fuse");
        world.spec["linux"]["devices"] = json!([{"path": "/dev/some/fuse", "type": "c",
            "major": 10, "minor": 229, "fileMode": 0o640, "uid": 7, "gid": 8}]);
        assert_eq!(output(&world), "character special file a:e5 640 7:8\n");
    });
}

#[test]
fn what_is_masked_is_empty_and_what_is_protected_is_read_only() {
    alone(|| {
        let mut world = World::new(
            "cat /proc/keys | wc -c; ls /secret | wc -l; ls /sys/firmware | wc -l; \
             echo 1 > /proc/sys/kernel/printk; touch /plain/x; touch /secret/x; cat /file",
        );
        for dir in ["secret", "plain"] {
            fs::create_dir(world.root().join(dir)).unwrap();
        }
        fs::write(world.root().join("secret/key"), "k").unwrap();
        fs::write(world.root().join("file"), "k").unwrap();
        let masked = json!([
            "/proc/keys",
            "/sys/firmware",
            "/secret",
            "/file",
            "/nothing"
        ]);
        world.spec["linux"]["maskedPaths"] = masked;
        world.spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/plain", "/nothing"]);
        let finished = world.run();
        assert_eq!(finished.out, "0\n0\n0\n", "{finished:?}");
        assert_eq!(
            finished.err.matches("Read-only file system").count(),
            3,
            "{finished:?}"
        );
        assert!(world.root().join("secret/key").exists());
    });
}

#[test]
fn a_link_for_a_mount_target_stays_inside() {
    alone(|| {
        let mut world = World::new("cat /inner/mounted/file; cat /etc/resolv.conf");
        let outside = world.dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let source = world.dir.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "bound\n").unwrap();
        fs::write(world.dir.path().join("resolv"), "nameserver\n").unwrap();
        // To the host's directory by an absolute path, and out by dots.
        symlink(&outside, world.root().join("evil")).unwrap();
        symlink("../../../../inner", world.root().join("climb")).unwrap();
        symlink("../run/stub.conf", world.root().join("etc/resolv.conf")).unwrap();
        add_mount(
            &mut world,
            json!({"destination": "/climb/mounted", "type": "bind",
            "source": source, "options": ["rbind", "ro"]}),
        );
        add_mount(
            &mut world,
            json!({"destination": "/evil/sub", "type": "tmpfs",
            "source": "tmpfs"}),
        );
        let resolv = world.dir.path().join("resolv");
        add_mount(
            &mut world,
            json!({"destination": "/etc/resolv.conf", "type": "bind",
            "source": resolv, "options": ["bind"]}),
        );
        assert_eq!(output(&world), "bound\nnameserver\n");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!world.dir.path().join("inner").exists());
        assert!(world.root().join("run/stub.conf").exists());
    });
}

#[test]
fn an_image_cannot_redirect_dev() {
    alone(|| {
        let mut world = World::new("stat -c %t:%T /dev/null; stat -c %t:%T /real/null");
        let outside = world.dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        // No mount on /dev: the nodes go where the image says that /dev is, but inside.
        world.spec["mounts"] = json!([world.spec["mounts"][0]]);
        symlink("/../../real", world.root().join("dev")).unwrap();
        fs::create_dir(world.root().join("real")).unwrap();
        symlink(&outside, world.root().join("real/null")).unwrap();
        symlink(outside.join("made"), world.root().join("real/zero")).unwrap();
        assert_eq!(output(&world), "1:3\n1:3\n");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    });
}

#[test]
fn proc_is_not_mounted_on_a_link() {
    alone(|| {
        let world = World::new("true");
        fs::create_dir(world.root().join("elsewhere")).unwrap();
        symlink("elsewhere", world.root().join("proc")).unwrap();
        assert_eq!(world.fail().step, Step::Mounts);
    });
}

#[test]
fn nothing_of_the_host_is_left_in_the_mount_table() {
    alone(|| {
        let world = World::new("cat /proc/self/mountinfo");
        let out = output(&world);
        assert!(
            out.lines().all(|line| !line.contains("/sandboxing")),
            "{out}"
        );
        let root = world.root();
        let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!host.contains(root.to_str().unwrap()), "{host}");
        for mounted in [" / / ", " /proc ", " /dev/pts ", " /sys/fs/cgroup/memory "] {
            if mounted.contains("memory") && !host.contains("/sys/fs/cgroup/memory ") {
                continue;
            }
            assert!(
                out.contains(mounted) || mounted == " / / ",
                "{mounted} is missing: {out}"
            );
        }
    });
}

#[test]
fn options_of_mounts_take_effect() {
    alone(|| {
        let mut world = World::new(
            "grep -E ' /(a|b|a/sub) ' /proc/mounts | while read s t f o r; do echo $t $o; done; \
             touch /a/x; touch /b/x",
        );
        let source = world.dir.path().join("source");
        fs::create_dir_all(source.join("sub")).unwrap();
        add_mount(
            &mut world,
            json!({"destination": "/a", "type": "none", "source": source,
            "options": ["rbind", "ro", "nosuid", "nodev", "noexec", "rprivate"]}),
        );
        add_mount(
            &mut world,
            json!({"destination": "/b", "type": "tmpfs", "source": "tmpfs",
            "options": ["size=64k", "mode=700", "noatime", "nosuid"]}),
        );
        let finished = world.run();
        let lines: Vec<_> = finished.out.lines().collect();
        assert!(
            lines[0].starts_with("/a ro,nosuid,nodev,noexec"),
            "{finished:?}"
        );
        assert!(lines[1].starts_with("/b rw,nosuid,noatime"), "{finished:?}");
        assert!(
            lines[1].contains("size=64k") && lines[1].contains("mode=700"),
            "{finished:?}"
        );
        assert_eq!(finished.err.matches("Read-only").count(), 1, "{finished:?}");
        assert_eq!(finished.code, 0);
    });
}

#[test]
fn an_unknown_option_is_explained_by_the_kernel() {
    alone(|| {
        let mut world = World::new("true");
        add_mount(
            &mut world,
            json!({"destination": "/a", "type": "tmpfs", "source": "tmpfs",
            "options": ["nonsense=1"]}),
        );
        let error = world.fail();
        assert_eq!(error.step, Step::Mounts);
        assert!(error.what.contains("nonsense"), "{error}");
    });
}

#[test]
fn the_root_can_be_read_only() {
    alone(|| {
        let mut world = World::new("touch /x; touch /tmp/x; touch /dev/shm/x && echo shm");
        world.spec["root"]["readonly"] = json!(true);
        let finished = world.run();
        assert_eq!(finished.out, "shm\n", "{finished:?}");
        assert_eq!(
            finished.err.matches("Read-only file system").count(),
            2,
            "{finished:?}"
        );
        assert!(!world.root().join("x").exists());
    });
}

fn overlay(world: &mut World, layers: usize) -> PathBuf {
    let dir = world.dir.path().to_owned();
    let mut lower = Vec::new();
    for i in (0..layers).rev() {
        let layer = dir.join(format!("layer,{i}:x"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("top"), format!("{i}\n")).unwrap();
        fs::write(layer.join(format!("of{i}")), "").unwrap();
        lower.push(layer);
    }
    lower.push(world.root());
    let upper = dir.join("upper");
    fs::create_dir(&upper).unwrap();
    fs::create_dir(dir.join("work")).unwrap();
    world.rootfs = Rootfs::Overlay {
        lower,
        upper: upper.clone(),
        work: dir.join("work"),
    };
    upper
}

#[test]
fn an_overlay_of_sixty_layers_is_mounted_for_the_container_alone() {
    alone(|| {
        let mut world = World::new("cat /top; ls / | grep -c ^of; echo new > /written");
        let upper = overlay(&mut world, 60);
        assert_eq!(output(&world), "59\n60\n");
        assert_eq!(fs::read_to_string(upper.join("written")).unwrap(), "new\n");
        let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!host.contains(world.dir.path().to_str().unwrap()), "{host}");
    });
}

#[test]
fn layers_and_parts_of_them_are_mounted_read_only() {
    // A long path is what only the old way of mounting takes, which has to do the same.
    alone(|| {
        for name in ["short".to_owned(), "l".repeat(250)] {
            let mut world = World::new(
                "cat /all/a /all/b /part/deep /one; ls /all; touch /all/x 2>&1 || echo refused",
            );
            let (top, bottom) = (world.dir.path().join(&name), world.dir.path().join("b"));
            fs::create_dir_all(top.join("dir")).unwrap();
            fs::create_dir(&bottom).unwrap();
            fs::write(top.join("a"), "top\n").unwrap();
            fs::write(top.join("dir/deep"), "deep\n").unwrap();
            fs::write(bottom.join("a"), "hidden\n").unwrap();
            fs::write(bottom.join("b"), "bottom\n").unwrap();
            symlink("/../../dir", top.join("link")).unwrap();
            let (top, bottom) = (top.display(), bottom.display());
            for (destination, subdir) in
                [("/all", None), ("/part", Some("link")), ("/one", Some("a"))]
            {
                let mut options = vec![
                    "ro".to_owned(),
                    format!("lowerdir+={top}"),
                    format!("lowerdir+={bottom}"),
                ];
                options.extend(subdir.map(|path| format!("X-mount.subdir={path}")));
                let mount = json!({"destination": destination, "type": "overlay",
                    "source": "overlay", "options": options});
                add_mount(&mut world, mount);
            }
            let out = output(&world);
            let expected = "top\nbottom\ndeep\ntop\na\nb\ndir\nlink\n";
            assert!(
                out.starts_with(expected) && out.ends_with("refused\n"),
                "{out}"
            );
            let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!host.contains(world.dir.path().to_str().unwrap()), "{host}");
            world.spec["mounts"].as_array_mut().unwrap().pop();
            let mount = json!({"destination": "/one", "type": "overlay", "source": "overlay",
                "options": ["ro", format!("lowerdir+={top}"), format!("lowerdir+={bottom}"),
                    "X-mount.subdir=none"]});
            add_mount(&mut world, mount);
            assert!(world.fail().to_string().contains("none"));
        }
    });
}

#[test]
fn capabilities_are_those_of_the_specification() {
    alone(|| {
        let mut world = World::new("grep Cap /proc/self/status");
        let caps = json!(["CAP_CHOWN", "CAP_KILL"]);
        world.spec["process"]["capabilities"] =
            json!({"bounding": caps, "effective": caps, "permitted": caps});
        let value = "0000000000000021";
        let none = "0000000000000000";
        let expected = format!(
            "CapInh:\t{none}\nCapPrm:\t{value}\nCapEff:\t{value}\nCapBnd:\t{value}\nCapAmb:\t{none}\n"
        );
        assert_eq!(output(&world), expected);

        // A user has none, except ambient ones.
        merge(
            &mut world.spec["process"]["user"],
            &json!({"uid": 1000, "gid": 1000}),
        );
        let out = output(&world);
        assert!(out.contains(&format!("CapEff:\t{none}")), "{out}");
        world.spec["process"]["capabilities"] = json!({"bounding": caps, "effective": caps,
            "permitted": caps, "inheritable": caps, "ambient": ["CAP_KILL"]});
        let out = output(&world);
        assert!(out.contains("CapEff:\t0000000000000020"), "{out}");
    });
}

#[test]
fn a_capability_that_the_machine_lacks_is_left_out_and_told() {
    alone(|| {
        let available = rustix::thread::capabilities(None).unwrap().permitted;
        if available.contains(rustix::thread::CapabilitySet::SYS_RESOURCE) {
            eprintln!("skipped: CAP_SYS_RESOURCE is there");
            return;
        }
        let mut world = World::new("grep CapEff /proc/self/status");
        let caps = json!(["CAP_CHOWN", "CAP_SYS_RESOURCE"]);
        world.spec["process"]["capabilities"] =
            json!({"bounding": caps, "effective": caps, "permitted": caps});
        let finished = world.run();
        assert_eq!(finished.out, "CapEff:\t0000000000000001\n");
        assert!(
            finished
                .notes
                .iter()
                .any(|n| n.contains("CAP_SYS_RESOURCE")),
            "{finished:?}"
        );
    });
}

#[test]
fn the_user_and_the_groups_are_set() {
    alone(|| {
        let mut world =
            World::new("id -u; id -g; id -G; umask; echo $HOME; pwd; echo again > /dev/stdout");
        fs::write(
            world.root().join("etc/passwd"),
            "u:x:1000:100::/home/u:/bin/sh\n",
        )
        .unwrap();
        merge(
            &mut world.spec["process"],
            &json!({"user": {"uid": 1000, "gid": 100, "additionalGids": [5, 6], "umask": 0o077},
                "cwd": "/tmp"}),
        );
        assert_eq!(
            output(&world),
            "1000\n100\n100 5 6\n0077\n/home/u\n/tmp\nagain\n"
        );
    });
}

#[test]
fn no_new_privileges_and_limits_are_set() {
    alone(|| {
        let mut world =
            World::new("grep NoNewPrivs /proc/self/status; ulimit -n; ulimit -Hn; ulimit -c");
        world.spec["process"]["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
        assert_eq!(output(&world), "NoNewPrivs:\t1\n100\n200\n0\n");
        world.spec["process"]["noNewPrivileges"] = json!(false);
        assert!(output(&world).starts_with("NoNewPrivs:\t0\n"));
    });
}

#[test]
fn limits_that_need_a_capability_are_reduced_and_told() {
    alone(|| {
        let available = rustix::thread::capabilities(None).unwrap().permitted;
        if available.contains(rustix::thread::CapabilitySet::SYS_RESOURCE) {
            eprintln!("skipped: CAP_SYS_RESOURCE is there");
            return;
        }
        let mut world = World::new("ulimit -Hn; cat /proc/self/oom_score_adj");
        let own = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .maximum
            .unwrap();
        merge(
            &mut world.spec["process"],
            &json!({"oomScoreAdj": -999,
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2_000_000, "hard": 2_000_000}]}),
        );
        let finished = world.run();
        let adj = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let adj: i32 = adj.trim().parse().unwrap();
        assert_eq!(
            finished.out,
            format!("{own}\n{}\n", adj.min(0)),
            "{finished:?}"
        );
        assert_eq!(finished.notes.len(), 2, "{finished:?}");
        world.spec["process"]["oomScoreAdj"] = json!(500);
        assert!(world.run().out.ends_with("\n500\n"));
    });
}

#[test]
fn a_missing_working_directory_is_made_inside() {
    alone(|| {
        let mut world = World::new("pwd");
        let outside = world.dir.path().join("outside");
        symlink(&outside, world.root().join("link")).unwrap();
        for cwd in ["/no/where", "/link/sub"] {
            world.spec["process"]["cwd"] = json!(cwd);
            assert_eq!(world.run().code, 0);
        }
        assert!(world.root().join("no/where").is_dir());
        assert!(!outside.exists());
        world.spec["process"]["cwd"] = json!("/bin/busybox");
        assert_eq!(world.fail().step, Step::Command);
    });
}

#[test]
fn a_working_directory_by_a_descriptor_of_the_caller_is_refused() {
    alone(|| {
        // As in CVE-2024-21626.
        let leak = fs::File::open("/").unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        use std::os::fd::AsRawFd;
        let mut world = World::new("ls");
        world.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{}", leak.as_raw_fd()));
        assert_eq!(world.fail().step, Step::Command);
    });
}

#[test]
fn descriptors_of_the_caller_do_not_leak() {
    alone(|| {
        let leak = fs::File::open("/etc/hostname").unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let world = World::new("ls /proc/self/fd");
        assert_eq!(output(&world), "0\n1\n2\n3\n");
    });
}

#[test]
fn failures_of_the_program_are_told_apart() {
    alone(|| {
        let mut world = World::new("true");
        let mut kind = |args: serde_json::Value| {
            world.spec["process"]["args"] = args;
            let error = world.fail();
            (error.step, error.kind)
        };
        assert_eq!(
            kind(json!(["nothing"])),
            (Step::Command, Kind::CommandNotFound)
        );
        assert_eq!(
            kind(json!(["/bin/nothing"])),
            (Step::Command, Kind::CommandNotFound)
        );
        assert_eq!(
            kind(json!(["/etc"])),
            (Step::Command, Kind::CommandNotExecutable)
        );
    });
    alone(|| {
        let mut world = World::new("true");
        let script = world.root().join("bin/script");
        fs::write(&script, "#!/no/interpreter\n").unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        world.spec["process"]["args"] = json!(["script"]);
        let error = world.fail();
        assert_eq!(
            (error.step, error.kind),
            (Step::Execute, Kind::CommandNotFound)
        );
        assert!(!world.cgroup.pids().is_ok_and(|pids| !pids.is_empty()));
    });
}

#[test]
fn a_kernel_parameter_is_set_in_its_own_namespace() {
    alone(|| {
        let mut world = World::new("cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/shmmni");
        world.spec["linux"]["sysctl"] =
            json!({"net.ipv4.ip_default_ttl": "77", "kernel.shmmni": "123"});
        assert_eq!(output(&world), "77\n123\n");
        let host = fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
        assert_ne!(host.trim(), "77");
        world.spec["linux"]["sysctl"] = json!({"vm.swappiness": "1"});
        assert!(matches!(world.start(), Err(LaunchError::Spec { .. })));
        assert!(!world.cgroup.exists() || world.cgroup.pids().unwrap().is_empty());
    });
}

#[test]
fn it_runs_in_its_cgroup_with_its_limits() {
    alone(|| {
        let mut world = World::new("head -n 1 /proc/self/cgroup; sleep 100");
        world.spec["linux"]["resources"] =
            json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 17}});
        let mut running = world.start().unwrap();
        assert_eq!(world.cgroup.pids().unwrap()[0], running.launched.pid);
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", running.launched.pid)).unwrap();
        assert!(cgroups.contains(world.cgroup.path()), "{cgroups}");
        let stats = world.cgroup.stats().unwrap();
        assert_eq!(stats.pids.limit, Some(17));
        // Its own view begins at its cgroup.
        let line = running.line();
        assert!(line.ends_with(":/"), "{line}");
        world
            .cgroup
            .kill(std::time::Duration::from_secs(10))
            .unwrap();
        assert_eq!(running.finish().code, 128 + libc::SIGKILL);
    });
}

#[test]
fn too_much_memory_is_killed_and_counted() {
    alone(|| {
        let mut world = World::new(
            "head -c 200m /dev/zero | grep -c x; dd if=/dev/zero of=/dev/null bs=200M count=1",
        );
        world.spec["linux"]["resources"] = json!({"memory": {"limit": 20_971_520}});
        world.spec["process"]["args"] =
            json!(["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
        let finished = world.run();
        assert_eq!(finished.code, 128 + libc::SIGKILL, "{finished:?}");
        assert_eq!(world.cgroup.oom_kills().unwrap(), 1);
    });
}

#[test]
fn a_failed_launch_leaves_nothing() {
    alone(|| {
        let mut world = World::new("true");
        world.spec["process"]["args"] = json!([]);
        assert!(matches!(world.start(), Err(LaunchError::Spec { .. })));
        assert!(!world.cgroup.exists());
        world.spec["process"]["args"] = sh("true");
        world.spec["hostname"] = json!("");
        world.spec["linux"]["namespaces"] =
            json!([{"type": "mount"}, {"type": "pid", "path": "/nonexistent"}]);
        assert!(matches!(world.start(), Err(LaunchError::System { .. })));
        assert!(!world.cgroup.exists());
    });
}

#[test]
fn a_user_namespace_maps_ids() {
    alone(|| {
        let mut world =
            World::new("id -u; cat /proc/self/uid_map; touch /tmp/mine; ls -ln /dev/null");
        for dir in ["", "tmp"] {
            let dir = world.root().join(dir);
            std::os::unix::fs::chown(dir, Some(100_000), Some(100_000)).unwrap();
        }
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(world.dir.path(), open).unwrap();
        let namespaces = world.spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        merge(
            &mut world.spec["linux"],
            &json!({"uidMappings": map, "gidMappings": map}),
        );
        let finished = world.run();
        assert_eq!(finished.code, 0, "{finished:?}");
        assert!(finished.out.starts_with("0\n"), "{finished:?}");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(
            fs::metadata(world.root().join("tmp/mine")).unwrap().uid(),
            100_000
        );
    });
}

/// Gives the container a user namespace whose root is 100000 on the host.
fn with_user_namespace(world: &mut World) -> serde_json::Value {
    let namespaces = world.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    merge(
        &mut world.spec["linux"],
        &json!({"uidMappings": map, "gidMappings": map}),
    );
    map
}

fn own(path: &Path, id: u32) {
    std::os::unix::fs::chown(path, Some(id), Some(id)).unwrap();
}

fn owner(path: impl AsRef<Path>) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::symlink_metadata(path).unwrap())
}

#[test]
fn layers_are_mapped_without_a_copy() {
    alone(|| {
        let script = "stat -c %u:%g / /of0 /users; echo more >> /of0; touch /new; \
                      readlink /proc/self/ns/pid; readlink /proc/1/ns/net; echo $$";
        for layers in [1, 12] {
            let mut world = World::new(script);
            with_user_namespace(&mut world);
            let upper = overlay(&mut world, layers);
            own(&upper, 100_000);
            let users = world.root().join("users");
            fs::write(&users, "").unwrap();
            own(&users, 1000);
            // Nothing above the layers can be entered by anybody but the host's root.
            let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(world.dir.path(), closed).unwrap();
            let out = output(&world);
            assert!(out.starts_with("0:0\n0:0\n1000:1000\n"), "{out}");
            assert!(out.ends_with("\n1\n"), "{out}");
            // What was written is the container root's, what was not is as it was.
            assert_eq!(owner(upper.join("of0")), 100_000);
            assert_eq!(owner(upper.join("new")), 100_000);
            assert!(!upper.join("users").exists());
            assert_eq!(owner(&users), 1000);
            assert_eq!(owner(world.dir.path().join("layer,0:x/of0")), 0);
            let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!host.contains(world.dir.path().to_str().unwrap()), "{host}");
        }
    });
}

#[test]
fn namespaces_belong_to_the_user_namespace() {
    alone(|| {
        let mut world = World::new("sleep 100");
        with_user_namespace(&mut world);
        let upper = overlay(&mut world, 1);
        own(&upper, 100_000);
        let running = world.start().unwrap();
        let pid = running.launched.pid;
        let user = fs::metadata(format!("/proc/{pid}/ns/user")).unwrap();
        for name in ["pid", "mnt", "net", "ipc", "uts", "cgroup"] {
            let file = fs::File::open(format!("/proc/{pid}/ns/{name}")).unwrap();
            let owner = owner_of_namespace(&file);
            use std::os::unix::fs::MetadataExt;
            assert_eq!(owner.metadata().unwrap().ino(), user.ino(), "{name}");
        }
        let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
        let words: Vec<_> = map.split_whitespace().collect();
        assert_eq!(words, ["0", "100000", "65536"]);
        assert_eq!(world.cgroup.pids().unwrap(), [pid]);
        kelson_sys::process::pidfd_send_signal(
            std::os::fd::AsFd::as_fd(&running.launched.pidfd),
            libc::SIGKILL,
        )
        .unwrap();
        assert_eq!(running.wait(), 128 + libc::SIGKILL);
    });
}

#[allow(unsafe_code, reason = "an ioctl that only a test needs")]
fn owner_of_namespace(file: &fs::File) -> fs::File {
    use std::os::fd::{AsRawFd, FromRawFd};
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: the ioctl takes no argument and returns a fresh descriptor.
    unsafe {
        let fd = libc::ioctl(file.as_raw_fd(), NS_GET_USERNS);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        fs::File::from_raw_fd(fd)
    }
}

#[test]
fn a_volume_is_mapped_without_a_change_on_the_host() {
    alone(|| {
        let mut world = World::new(
            "stat -c %u:%g /plain /mapped /by-option /other; touch /mapped/new; \
             touch /plain/new || echo denied; mkdir /mapped/sub; echo x > /dev/stdout; \
             dd if=/dev/zero of=/dev/null count=1 2>/dev/null && echo devices; \
             cat /proc/self/oom_score_adj; ls /sys/class >/dev/null && echo sysfs",
        );
        let map = with_user_namespace(&mut world);
        let upper = overlay(&mut world, 2);
        own(&upper, 100_000);
        let volume = world.dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        let source = volume.to_str().unwrap();
        let other = json!([{"containerID": 0, "hostID": 100_007, "size": 10}]);
        for (target, changes) in [
            ("/plain", json!({})),
            ("/mapped", json!({"uidMappings": map, "gidMappings": map})),
            ("/by-option", json!({"options": ["bind", "idmap"]})),
            (
                "/other",
                json!({"uidMappings": other, "gidMappings": other}),
            ),
        ] {
            let mut mount = json!({"destination": target, "type": "bind", "source": source,
                "options": ["rbind", "rprivate"]});
            merge(&mut mount, &changes);
            add_mount(&mut world, mount);
        }
        world.spec["process"]["oomScoreAdj"] = json!(321);
        let out = output(&world);
        assert_eq!(
            out,
            "65534:65534\n0:0\n0:0\n7:7\ndenied\nx\ndevices\n321\nsysfs\n"
        );
        assert_eq!(owner(volume.join("new")), 0);
        assert_eq!(owner(volume.join("sub")), 0);
        assert_eq!(owner(&volume), 0);
    });
}

#[test]
fn the_root_of_a_user_namespace_makes_cgroups_in_its_own() {
    use kelson_sys::mount::{Filesystem, attach_at};
    use std::os::fd::AsFd;
    alone(|| {
        let script = "cd /sys/fs/cgroup; stat -c %u . cgroup.procs cgroup.max.depth; \
                      mkdir mine && echo $$ > mine/cgroup.procs && cat /proc/self/cgroup";
        let mut world = World::new(script);
        // A hierarchy of version 2 without controllers can be had beside one of version 1.
        own_mounts();
        let dir = world.dir.path().join("v2");
        fs::create_dir(&dir).unwrap();
        let tree = Filesystem::open(c"cgroup2").unwrap().mount(0).unwrap();
        attach_at(tree.as_fd(), &dir).unwrap();
        let path = format!("/kelson-delegation-{}", std::process::id());
        world.cgroup = Cgroup::new(&Hierarchy::v2_at(&dir), &path).unwrap();
        with_user_namespace(&mut world);
        let upper = overlay(&mut world, 1);
        own(&upper, 100_000);
        let mounts = world.spec["mounts"].as_array_mut().unwrap();
        let cgroup = mounts
            .iter_mut()
            .find(|one| one["type"] == "cgroup")
            .unwrap();
        cgroup["options"] = json!(["nosuid", "noexec", "nodev", "relatime", "rw"]);
        let out = output(&world);
        assert!(out.starts_with("0\n0\n65534\n"), "{out}");
        assert!(out.contains("\n0::/mine\n"), "{out}");
        assert_eq!(owner(dir.join(&path[1..])), 100_000);
        fs::remove_dir(dir.join(&path[1..]).join("mine")).unwrap();
        // What is mounted in the test's directory would keep it.
        world.cgroup.remove().unwrap();
        kelson_sys::mount::detach(&dir).unwrap();
    });
}

#[test]
fn a_file_system_that_cannot_be_mapped_is_named() {
    alone(|| {
        let mut world = World::new("true");
        let map = with_user_namespace(&mut world);
        let upper = overlay(&mut world, 1);
        own(&upper, 100_000);
        add_mount(
            &mut world,
            json!({"destination": "/p", "type": "bind", "source": "/proc/sys",
            "options": ["bind"], "uidMappings": map, "gidMappings": map}),
        );
        let error = world.fail();
        assert_eq!(error.step, Step::Mounts);
        assert!(error.what.contains("ids of /proc/sys"), "{error}");
        // Nothing is left of the process that prepares either.
        assert!(world.cgroup.pids().unwrap().is_empty());

        let mut world = World::new("true");
        with_user_namespace(&mut world);
        world.spec["process"]["user"]["uid"] = json!(70_000);
        let error = world.fail();
        assert!(error.what.contains("user 70000"), "{error}");
    });
}

#[test]
fn an_overlay_with_paths_too_long_for_single_options_is_mounted() {
    alone(|| {
        let mut world = World::new("cat /top; echo new > /written");
        overlay(&mut world, 3);
        let Rootfs::Overlay { lower, .. } = &world.rootfs else {
            panic!()
        };
        let long = world
            .dir
            .path()
            .join("a,b:".repeat(50))
            .join("c".repeat(100));
        fs::create_dir_all(long.join("upper")).unwrap();
        fs::create_dir_all(long.join("work")).unwrap();
        let upper = long.join("upper");
        world.rootfs = Rootfs::Overlay {
            lower: lower.clone(),
            upper: upper.clone(),
            work: long.join("work"),
        };
        assert_eq!(output(&world), "2\n");
        assert!(upper.join("written").exists());
    });
}

#[test]
fn a_root_without_pivoting() {
    alone(|| {
        let world = World::new("ls / | grep -c root; pwd");
        let (stdio, out) = common::pipes();
        let options = kelson_runtime::Options {
            no_pivot: true,
            ..Default::default()
        };
        let finished = world
            .start_with(stdio, Some(out), options)
            .unwrap()
            .finish();
        assert_eq!(finished.out, "0\n/\n", "{finished:?}");
    });
}

#[test]
fn a_label_that_cannot_be_had_is_an_error() {
    alone(|| {
        if Path::new("/sys/kernel/security/apparmor").exists() {
            eprintln!("skipped: AppArmor is there");
            return;
        }
        let mut world = World::new("true");
        world.spec["process"]["apparmorProfile"] = json!("some-profile");
        assert_eq!(world.fail().step, Step::Labels);
        world.spec["process"]["apparmorProfile"] = json!("unconfined");
        assert_eq!(world.run().code, 0);
    });
}

#[test]
fn an_selinux_label_without_selinux_is_an_error() {
    alone(|| {
        if Path::new("/sys/fs/selinux/enforce").exists() {
            eprintln!("skipped: SELinux is there");
            return;
        }
        let label = "system_u:system_r:container_t:s0:c1,c2";
        let mut world = World::new("true");
        world.spec["process"]["selinuxLabel"] = json!(label);
        let error = world.fail();
        assert!(error.to_string().contains(label), "{error}");
        world.spec["process"]["selinuxLabel"] = json!("");
        assert_eq!(world.run().code, 0);
        // That of the root and of new file systems.
        world.spec["linux"]["mountLabel"] = json!(label);
        let error = world.fail();
        assert!(error.to_string().contains(label), "{error}");
    });
}

/// Gives the test a mount namespace of its own.
fn own_mounts() {
    use kelson_sys::mount::{Attributes, Propagation, set_attributes};
    use std::os::fd::AsFd;
    kelson_sys::process::unshare(kelson_sys::process::ns::MOUNT).unwrap();
    let root = fs::File::open("/").unwrap();
    let private = Attributes {
        propagation: Some(Propagation::Private),
        ..Default::default()
    };
    set_attributes(root.as_fd(), &private, true).unwrap();
}

/// A tmpfs that is shared, in a mount namespace of the test's own.
fn shared_directory(world: &World) -> PathBuf {
    use kelson_sys::mount::{Attributes, Filesystem, Propagation, attach_at, set_attributes};
    use std::os::fd::AsFd;
    own_mounts();
    let dir = world.dir.path().join("shared");
    fs::create_dir(&dir).unwrap();
    let tree = Filesystem::open(c"tmpfs").unwrap().mount(0).unwrap();
    attach_at(tree.as_fd(), &dir).unwrap();
    let shared = Attributes {
        propagation: Some(Propagation::Shared),
        ..Default::default()
    };
    set_attributes(tree.as_fd(), &shared, false).unwrap();
    fs::create_dir(dir.join("a")).unwrap();
    dir
}

#[test]
fn mounts_spread_as_asked() {
    alone(|| {
        for (option, reaches_host, reaches_container) in [
            ("rshared", true, true),
            ("rslave", false, true),
            ("rprivate", false, false),
        ] {
            let mut world = World::new(
                "mount -t tmpfs in /v/a && echo mounted; \
                 while ! test -e /go; do sleep 0.02; done; grep -c ' /v/b ' /proc/mounts; true",
            );
            let dir = shared_directory(&world);
            fs::create_dir(dir.join("b")).unwrap();
            let caps = json!(["CAP_SYS_ADMIN"]);
            world.spec["process"]["capabilities"] =
                json!({"bounding": caps, "effective": caps, "permitted": caps});
            add_mount(
                &mut world,
                json!({"destination": "/v", "type": "bind", "source": dir,
                "options": ["rbind", option]}),
            );
            let mut running = world.start().unwrap();
            assert_eq!(running.line(), "mounted", "{option}");
            let host = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            assert_eq!(
                host.contains("/shared/a "),
                reaches_host,
                "{option}: {host}"
            );
            let tree = kelson_sys::mount::Filesystem::open(c"tmpfs")
                .unwrap()
                .mount(0)
                .unwrap();
            use std::os::fd::AsFd;
            kelson_sys::mount::attach_at(tree.as_fd(), &dir.join("b")).unwrap();
            fs::write(world.root().join("go"), "").unwrap();
            let finished = running.finish();
            let seen = if reaches_container { "1\n" } else { "0\n" };
            assert_eq!(finished.out, seen, "{option}: {finished:?}");
            kelson_sys::mount::detach(&dir).unwrap();
        }
    });
}
