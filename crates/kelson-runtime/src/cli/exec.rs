//! `exec`.

use std::os::fd::AsFd;

use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

use super::args::{ExecArgs, Global};
use super::bundle::compile_seccomp;
use super::create::write_pid;
use super::error::CliError;
use super::record::{Container, Status, read_json};
use super::{console, foreground};
use crate::{Event, Exec, LaunchError, Launched, Options, Stdio, exec as run_in};

/// Runs a further program in a container.
pub(super) fn exec(global: &Global, args: &ExecArgs) -> Result<u8, CliError> {
    let container = Container::open(global, &args.id)?;
    let status = container.status()?;
    let enterable = match status {
        Status::Created | Status::Running => true,
        Status::Paused => args.ignore_paused,
        Status::Creating | Status::Stopped => false,
    };
    let (true, Some(init)) = (enterable, container.pidfd()?) else {
        let (id, needed) = (args.id.clone(), "and only a running one can be entered");
        return Err(CliError::State { id, status, needed });
    };
    let spec = container.spec()?;
    let process = process(&spec, args)?;
    let terminal = process.terminal().unwrap_or(false);
    if terminal && args.detach && args.console_socket.is_none() {
        let text = "a terminal needs --console-socket, or exec without --detach";
        return Err(CliError::Usage(text.to_owned()));
    }
    let seccomp = compile_seccomp(&spec)?;
    let cgroup = match &args.cgroup {
        Some(path) => container.cgroup()?.child(path.trim_matches('/'))?,
        None => container.cgroup()?,
    };
    let mut launched = run_in(Exec {
        init: init.as_fd(),
        process: &process,
        cgroup: &cgroup,
        stdio: if terminal {
            Stdio::Terminal
        } else {
            Stdio::Inherit
        },
        seccomp: seccomp.as_ref(),
        options: Options {
            preserve_fds: args.preserve_fds,
            ..Options::default()
        },
    })?;
    let terminal = follow(&mut launched, args)?;
    if let Some(path) = &args.pid_file {
        write_pid(path, launched.pid)?;
    }
    if args.detach {
        Ok(0)
    } else {
        foreground::wait(&launched, terminal)
    }
}

fn follow(
    launched: &mut Launched,
    args: &ExecArgs,
) -> Result<Option<std::os::fd::OwnedFd>, CliError> {
    let mut terminal = None;
    loop {
        match launched.progress.wait(None)? {
            Event::Terminal(master) => match &args.console_socket {
                Some(path) => console::send(path, &master)?,
                None => terminal = Some(master),
            },
            Event::Executed => return Ok(terminal),
            Event::Failed(error) => {
                let _ = foreground::reap(launched);
                return Err(LaunchError::from(error).into());
            }
            Event::Note(_) | Event::Process { .. } | Event::HooksDue | Event::Waiting => {}
        }
    }
}

/// The process: from its file, or the container's own with what the flags change.
fn process(spec: &Spec, args: &ExecArgs) -> Result<Process, CliError> {
    if let Some(path) = &args.process {
        return read_json(path);
    }
    if args.command.is_empty() {
        let text = "there is no program to run; name one after the id, or use --process";
        return Err(CliError::Usage(text.to_owned()));
    }
    let invalid = |source| CliError::Json {
        path: "the process".into(),
        source,
    };
    let mut json = serde_json::to_value(spec.process()).map_err(invalid)?;
    json["args"] = json!(args.command);
    json["terminal"] = json!(args.tty);
    json["consoleSize"] = Value::Null;
    if let Some(cwd) = &args.cwd {
        json["cwd"] = json!(cwd);
    }
    let env = json["env"].take();
    let env = env.as_array().cloned().unwrap_or_default();
    json["env"] = env
        .into_iter()
        .chain(args.env.iter().map(|e| json!(e)))
        .collect();
    if let Some(user) = &args.user {
        let (uid, gid) = parse_user(user)?;
        json["user"] = json!({"uid": uid, "gid": gid});
    }
    if !args.additional_gids.is_empty() {
        json["user"]["additionalGids"] = json!(args.additional_gids);
    }
    for set in ["bounding", "effective", "permitted"] {
        for capability in &args.cap {
            match json["capabilities"][set].as_array_mut() {
                Some(list) => list.push(json!(capability)),
                None => json["capabilities"][set] = json!([capability]),
            }
        }
    }
    if args.no_new_privs {
        json["noNewPrivileges"] = json!(true);
    }
    if let Some(profile) = &args.apparmor {
        json["apparmorProfile"] = json!(profile);
    }
    if let Some(label) = &args.process_label {
        json["selinuxLabel"] = json!(label);
    }
    serde_json::from_value(json).map_err(invalid)
}

/// `uid` or `uid:gid`; the group is 0 where it is not given.
fn parse_user(text: &str) -> Result<(u32, u32), CliError> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) => Ok((uid, gid)),
        _ => Err(CliError::Usage(format!(
            "{text:?} is no user; use numbers, as in 1000:1000"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn parse(line: &str) -> ExecArgs {
        let cli = super::super::args::Cli::parse_from(line.split(' '));
        match cli.command {
            super::super::args::Command::Exec(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn spec() -> Spec {
        serde_json::from_value(json!({"ociVersion": "1.0.2", "process": {
            "user": {"uid": 1, "gid": 1}, "cwd": "/", "args": ["init"], "env": ["A=1"],
            "capabilities": {"bounding": ["CAP_KILL"]}, "terminal": true}}))
        .unwrap()
    }

    #[test]
    fn flags_change_the_containers_process() {
        let args = parse("x exec -u 5:6 -e B=2 -c CAP_CHOWN --cwd /tmp id ls -l");
        let process = process(&spec(), &args).unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["ls", "-l"]);
        assert_eq!(process.env().as_ref().unwrap(), &["A=1", "B=2"]);
        assert_eq!((process.user().uid(), process.user().gid()), (5, 6));
        assert_eq!(process.terminal(), Some(false));
        let capabilities = process.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 2);
        assert_eq!(capabilities.permitted().as_ref().unwrap().len(), 1);
        assert!(capabilities.inheritable().is_none());
    }

    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user("7").unwrap(), (7, 0));
        for text in ["root", "1:", "-1", "4294967296", "1:2:3"] {
            assert!(parse_user(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_program_is_needed() {
        assert!(matches!(
            process(&spec(), &parse("x exec id")),
            Err(CliError::Usage(_))
        ));
    }
}
