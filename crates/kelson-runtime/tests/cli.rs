//! The command line, driven as engines drive it, by the example program `oci`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests")]

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{alone, fill, merge, sh};
use serde_json::{Value, json};

/// A bundle, and a state directory of its own.
struct Engine {
    dir: tempfile::TempDir,
    program: PathBuf,
    id: String,
}

impl Engine {
    /// A bundle whose specification has `changes`; `None` where the program was not built.
    fn new(changes: &Value) -> Option<Self> {
        let own = std::env::current_exe().unwrap();
        let program = own.parent()?.parent()?.join("examples/oci");
        if !program.exists() {
            eprintln!("skipped: needs the example oci (cargo build --examples)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fill(&dir.path().join("root"));
        let mut spec = common::World::new("true").spec.clone();
        let id = format!("kelson-oci-test-{}", std::process::id());
        merge(
            &mut spec,
            &json!({"linux": {"cgroupsPath": format!("/{id}")}}),
        );
        merge(&mut spec, changes);
        fs::write(dir.path().join("config.json"), spec.to_string()).unwrap();
        Some(Self { dir, program, id })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let state = self.dir.path().join("state");
        command.arg("--root").arg(state).args(args).arg(&self.id);
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// `create`, whose output goes to a file: the container keeps it open.
    fn create(&self, args: &[&str]) -> bool {
        let out = fs::File::create(self.dir.path().join("out")).unwrap();
        let mut command = self.command(&[&["create"], args].concat());
        command
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .status()
            .unwrap()
            .success()
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["state"])).unwrap()
    }

    fn wait_for(&self, status: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.state()["status"] != status {
            assert!(Instant::now() < deadline, "{}", self.state());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn out(&self) -> String {
        fs::read_to_string(self.dir.path().join("out")).unwrap()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.call(&["delete", "--force"]);
    }
}

#[test]
fn a_container_lives_its_life() {
    alone(|| {
        let args = json!({"process": {"args": sh("echo started; sleep 100")}});
        let Some(engine) = Engine::new(&args) else {
            return;
        };
        assert!(engine.create(&["--pid-file", "pid"]), "{}", engine.out());
        let state = engine.state();
        assert_eq!(state["status"], "created");
        let pid = fs::read_to_string(engine.dir.path().join("pid")).unwrap();
        assert_eq!(state["pid"].to_string(), pid);
        assert_eq!(engine.out(), "");
        let second = engine.call(&["create"]);
        assert_eq!(second.status.code(), Some(1), "a second of the same id");
        engine.ok(&["start"]);
        engine.wait_for("running");
        assert_eq!(engine.call(&["start"]).status.code(), Some(1));
        engine.ok(&["pause"]);
        assert_eq!(engine.state()["status"], "paused");
        engine.ok(&["resume"]);
        engine.ok(&["update", "--pids-limit", "50"]);
        let pids: Vec<u32> = serde_json::from_str(&engine.ok(&["ps", "-f", "json"])).unwrap();
        assert_eq!(pids[0].to_string(), pid);
        assert_eq!(engine.call(&["delete"]).status.code(), Some(1));
        engine.ok(&["kill", "--all"]);
        engine.ok_signal("KILL");
        engine.wait_for("stopped");
        assert_eq!(engine.out(), "started\n");
        engine.ok(&["delete"]);
        assert_eq!(engine.call(&["state"]).status.code(), Some(1));
        assert!(engine.call(&["delete", "--force"]).status.success());
    });
}

impl Engine {
    fn ok_signal(&self, signal: &str) {
        let output = self.command(&["kill"]).arg(signal).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn exec(&self, options: &[&str], args: &[&str]) -> Output {
        self.command(&[&["exec"], options].concat())
            .args(args)
            .output()
            .unwrap()
    }
}

#[test]
fn run_returns_the_exit_code_and_leaves_nothing() {
    alone(|| {
        let args = json!({"process": {"args": sh("echo $0 ran; exit 9")}});
        let Some(engine) = Engine::new(&args) else {
            return;
        };
        let output = engine.call(&["run"]);
        assert_eq!(output.status.code(), Some(9));
        assert_eq!(output.stdout, b"/bin/sh ran\n");
        assert_eq!(engine.call(&["state"]).status.code(), Some(1));
        assert_eq!(
            fs::read_dir(engine.dir.path().join("state"))
                .unwrap()
                .count(),
            0
        );
    });
}

#[test]
fn a_missing_program_is_127_and_is_logged() {
    alone(|| {
        let args = json!({"process": {"args": ["nothing"]}});
        let Some(engine) = Engine::new(&args) else {
            return;
        };
        let log = engine.dir.path().join("log");
        let log_args = [
            "--log",
            log.to_str().unwrap(),
            "--log-format",
            "json",
            "run",
        ];
        assert_eq!(engine.call(&log_args).status.code(), Some(127));
        let line: Value = serde_json::from_str(&fs::read_to_string(log).unwrap()).unwrap();
        assert_eq!(line["level"], "error");
        assert!(
            line["msg"]
                .as_str()
                .unwrap()
                .contains("executable file not found in $PATH")
        );
        assert!(!engine.dir.path().join("state").join(&engine.id).exists());
    });
}

#[test]
fn exec_runs_inside_with_its_own_exit_code() {
    alone(|| {
        let args = json!({"process": {"args": ["sleep", "100"]}});
        let Some(engine) = Engine::new(&args) else {
            return;
        };
        assert!(engine.create(&[]), "{}", engine.out());
        engine.ok(&["start"]);
        let output = engine.exec(
            &["-e", "A=b", "-u", "7:8", "--cwd", "/tmp"],
            &["sh", "-c", "hostname; id -u; id -g; echo $A; pwd; exit 4"],
        );
        assert_eq!(output.status.code(), Some(4));
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "box\n7\n8\nb\n/tmp\n"
        );
        assert_eq!(engine.exec(&[], &["nothing"]).status.code(), Some(127));
        assert_eq!(engine.exec(&["-t"], &["tty"]).stdout, b"/dev/pts/0\r\n");
        let killed = engine.exec(&[], &["sh", "-c", "kill -9 $$"]);
        assert_eq!(killed.status.code(), Some(137));
    });
}

#[test]
fn hooks_run_in_their_order_and_places() {
    alone(|| {
        // A path that both the host and the container have.
        let file = format!("/tmp/kelson-hooks-{}", std::process::id());
        let hook = |name: &str| {
            let script = format!("read s; echo {name} $(pwd) $(echo $s | wc -w) >> {file}");
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
        };
        let mut hooks = json!({});
        for name in [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ] {
            hooks[name] = hook(name);
        }
        let args = json!({"hooks": hooks, "process": {"args": ["true"]}});
        let Some(engine) = Engine::new(&args) else {
            return;
        };
        let host = PathBuf::from(&file);
        let _ = fs::remove_file(&host);
        engine.ok(&["run"]);
        let words = |path: PathBuf| {
            let text = fs::read_to_string(path).unwrap();
            let first = |line: &str| line.split(' ').next().unwrap().to_owned();
            text.lines().map(first).collect::<Vec<_>>()
        };
        let outside = words(host.clone());
        fs::remove_file(host).unwrap();
        assert_eq!(
            outside,
            [
                "prestart",
                "createRuntime",
                "createContainer",
                "poststart",
                "poststop"
            ]
        );
        assert_eq!(
            words(engine.dir.path().join("root").join(&file[1..])),
            ["startContainer"]
        );
    });
}

#[test]
fn a_failing_hook_leaves_nothing() {
    alone(|| {
        for name in [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
        ] {
            let args = json!({"hooks": {name: [{"path": "/bin/false"}]}});
            let Some(engine) = Engine::new(&args) else {
                return;
            };
            let output = engine.call(&["run"]);
            assert_eq!(output.status.code(), Some(1), "{name}");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(text.contains(name), "{text}");
            assert!(!engine.dir.path().join("state").join(&engine.id).exists());
        }
    });
}

#[test]
fn a_terminal_is_sent_to_the_console_socket() {
    alone(|| {
        let args = json!({"process": {"terminal": true, "args": ["tty"]}});
        let Some(engine) = Engine::new(&args) else {
            return;
        };
        let path = engine.dir.path().join("console.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(
            engine.create(&["--console-socket", path.to_str().unwrap()]),
            "{}",
            engine.out()
        );
        let (connection, _) = listener.accept().unwrap();
        let mut buffer = [0; 64];
        let (_, fds) = kelson_sys::fdpass::recv_with_fds(connection.as_fd(), &mut buffer).unwrap();
        assert!(rustix::termios::isatty(&fds[0]));
        engine.ok(&["start"]);
        let n = rustix::io::read(&fds[0], &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"/dev/pts/0\r\n");
        assert!(!engine.create(&[]), "a terminal without a socket");
    });
}

#[test]
fn what_is_not_supported_is_refused_clearly() {
    alone(|| {
        let slice = json!({"linux": {"cgroupsPath": "user.slice:x:y"}});
        let Some(engine) = Engine::new(&slice) else {
            return;
        };
        for args in [&["run"][..], &["--systemd-cgroup", "run"]] {
            let output = engine.call(args);
            assert_eq!(output.status.code(), Some(1));
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(text.contains("systemd-cgroup"), "{text}");
        }
    });
}
