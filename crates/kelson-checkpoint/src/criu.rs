//! Running CRIU to dump a container that goes on running.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::rpc::{self, Answer, DumpOptions, Request, Silence};
use crate::{DUMP_LOG, log};

/// Where programs are looked for when PATH does not have them.
const ADMIN_DIRS: &[&str] = &["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// How long CRIU may take to end after its last word.
const LAST: Duration = Duration::from_secs(5);

/// Why CRIU did not do it.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// There is no CRIU on the machine.
    #[error(
        "{program} is not installed; install CRIU (Debian's package is criu), or set checkpoint.criu"
    )]
    Missing {
        /// What was looked for.
        program: String,
    },
    /// It could not be run.
    #[error("cannot {operation}")]
    Run {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// It took too long and was killed; the container goes on.
    #[error("CRIU was not done after {} s and was stopped", after.as_secs_f32())]
    TimedOut {
        /// The time that it had.
        after: Duration,
    },
    /// It refused, with its own reason.
    #[error("CRIU: {reason}")]
    Failed {
        /// Its last errors.
        reason: String,
    },
    /// What was to be done while the container stood still failed.
    #[error("cannot save the files of the container")]
    Files(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// CRIU on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criu {
    program: PathBuf,
}

/// A container to dump.
#[derive(Debug)]
pub struct Dump<'a> {
    /// Its first process.
    pub pid: u32,
    /// Program and arguments that run the words after them in the network, IPC and UTS namespaces of
    /// the container: what CRIU shares with a container it leaves out of the images.
    pub enter: Vec<String>,
    /// An empty directory for the images and the log.
    pub images: &'a Path,
    /// What lies outside of the container, in CRIU's words.
    pub external: Vec<String>,
    /// How long all of it may take.
    pub timeout: Duration,
}

impl Criu {
    /// Finds the program: an absolute path, or a name in PATH or a directory of administration.
    ///
    /// # Errors
    /// [`CriuError::Missing`].
    pub fn find(program: &Path) -> Result<Self, CriuError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).chain(ADMIN_DIRS.iter().map(PathBuf::from));
        let mut places: Vec<PathBuf> = match program.is_absolute() {
            true => vec![program.to_owned()],
            false => dirs.map(|dir| dir.join(program)).collect(),
        };
        places.retain(|place| place.is_absolute() && place.is_file());
        let found = places.into_iter().next();
        let program = found.ok_or_else(|| CriuError::Missing {
            program: program.display().to_string(),
        })?;
        Ok(Self { program })
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Dumps a container, and calls `frozen` while all of it stands still with its images complete. It
    /// runs again when this returns, also after a failure and when the caller dies.
    ///
    /// # Errors
    /// All but [`CriuError::Missing`].
    pub fn dump(
        &self,
        dump: &Dump<'_>,
        frozen: impl FnOnce() -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<(), CriuError> {
        let run = |operation| move |source| CriuError::Run { operation, source };
        let deadline = Instant::now() + dump.timeout;
        let (ours, theirs) = packets().map_err(run("make a socket for CRIU"))?;
        let log = dump.images.join("criu.out");
        let output = File::create(&log).map_err(run("make a file for the output of CRIU"))?;
        let errors = output
            .try_clone()
            .map_err(run("make a file for the output of CRIU"))?;
        let mut words = dump.enter.iter().map(String::as_str);
        let first = words.next().unwrap_or_default();
        let child = Command::new(first)
            .args(words)
            .arg(&self.program)
            .args(["swrk", "0"])
            .stdin(Stdio::from(theirs))
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(run("run CRIU"))?;
        let mut child = Killed(child);
        let mut frozen = Some(frozen);
        let talked = talk(&ours, dump, deadline, &mut frozen);
        drop(ours);
        match talked {
            Err(Talk::Silence(Silence::TimedOut)) => Err(CriuError::TimedOut {
                after: dump.timeout,
            }),
            Err(Talk::Files(error)) => {
                child.wait(LAST);
                Err(CriuError::Files(error))
            }
            Ok(Answer { success: true, .. }) if frozen.is_none() => {
                child.wait(LAST);
                Ok(())
            }
            Ok(answer) => {
                child.wait(LAST);
                Err(failed(dump.images, answer.message))
            }
            Err(Talk::Silence(Silence::Ended)) => {
                let status = child.wait(LAST);
                let ended = status.map(|status| format!("it ended early ({status})"));
                Err(failed(dump.images, ended))
            }
        }
    }
}

enum Talk {
    Silence(Silence),
    Files(Box<dyn std::error::Error + Send + Sync>),
}

/// Asks for the dump, and answers until it is done.
fn talk(
    socket: &OwnedFd,
    dump: &Dump<'_>,
    deadline: Instant,
    frozen: &mut Option<impl FnOnce() -> Result<(), Box<dyn std::error::Error + Send + Sync>>>,
) -> Result<Answer, Talk> {
    let images = File::open(dump.images).map_err(|_| Talk::Silence(Silence::Ended))?;
    let options = DumpOptions {
        images_dir_fd: images.as_raw_fd(),
        pid: i32::try_from(dump.pid).ok(),
        leave_running: Some(true),
        file_locks: Some(true),
        log_level: Some(2),
        log_file: Some(DUMP_LOG.to_owned()),
        notify_scripts: Some(true),
        manage_cgroups_mode: Some(rpc::CGROUPS_IGNORED),
        external: dump.external.clone(),
        timeout: u32::try_from(dump.timeout.as_secs().max(1)).ok(),
        network_lock: Some(rpc::NETWORK_NOT_LOCKED),
    };
    let request = Request {
        kind: rpc::DUMP,
        options: Some(options),
        notify_success: None,
    };
    rpc::send(socket, &request).map_err(Talk::Silence)?;
    loop {
        let answer = rpc::receive(socket, deadline).map_err(Talk::Silence)?;
        if answer.kind != rpc::NOTIFY {
            return Ok(answer);
        }
        let script = answer.notify.and_then(|notify| notify.script);
        let mut failure = None;
        if script.as_deref() == Some("post-dump")
            && let Some(frozen) = frozen.take()
        {
            failure = frozen().err();
        }
        let go_on = Request {
            kind: rpc::NOTIFY,
            options: None,
            notify_success: Some(failure.is_none()),
        };
        let sent = rpc::send(socket, &go_on);
        match failure {
            Some(error) => return Err(Talk::Files(error)),
            None => sent.map_err(Talk::Silence)?,
        }
    }
}

fn failed(images: &Path, told: Option<String>) -> CriuError {
    let told = told.filter(|told| !told.is_empty());
    let reason = log::reason(&images.join(DUMP_LOG))
        .or_else(|| log::reason(&images.join("criu.out")))
        .or(told)
        .unwrap_or_else(|| "it failed without a reason".to_owned());
    CriuError::Failed { reason }
}

fn packets() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socketpair(
        family,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// A process that is killed and reaped when it is dropped.
struct Killed(Child);

impl Killed {
    fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            match self.0.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Ok(Some(status)) => return Some(status),
                Err(_) => return None,
            }
        }
        None
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // A process that has ended needs neither.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_told_with_what_to_do() {
        let error = Criu::find(Path::new("no-such-criu")).unwrap_err();
        assert!(error.to_string().contains("install CRIU"), "{error}");
        assert!(Criu::find(Path::new("/no/such/criu")).is_err());
        assert_eq!(
            Criu::find(Path::new("/bin/sh")).unwrap().program(),
            Path::new("/bin/sh")
        );
    }

    /// A program in the place of CRIU that reads the request and says nothing.
    #[test]
    fn silence_ends_with_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let dump = Dump {
            pid: 1,
            enter: ["/bin/sh", "-c", "sleep 60"].map(str::to_owned).into(),
            images: dir.path(),
            external: Vec::new(),
            timeout: Duration::from_millis(200),
        };
        let criu = Criu::find(Path::new("/bin/sh")).unwrap();
        let start = Instant::now();
        let error = criu.dump(&dump, || Ok(())).unwrap_err();
        assert!(matches!(error, CriuError::TimedOut { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn an_early_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let dump = Dump {
            pid: 1,
            enter: ["/bin/sh", "-c", "exit 3"].map(str::to_owned).into(),
            images: dir.path(),
            external: Vec::new(),
            timeout: Duration::from_secs(10),
        };
        let criu = Criu::find(Path::new("/bin/sh")).unwrap();
        let error = criu.dump(&dump, || Ok(())).unwrap_err().to_string();
        assert!(error.contains("ended early"), "{error}");
    }
}
