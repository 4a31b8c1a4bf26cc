//! A container whose processes CRIU restores. CRIU is a child of the shim, and so is the restored
//! process, stopped, when CRIU has ended: it is compared with the specification and let go.

use std::path::{Path, PathBuf};

use kelson_checkpoint::RESTORE_LOG;
use oci_spec::runtime::Spec;
use rustix::process::{Pid, PidfdFlags, Signal, WaitStatus};

use super::{Container, launch_refusal};
use crate::proto::{Refusal, RefusalKind};
use crate::shim::{internal, refusal};

/// What has to be known when CRIU has ended.
#[derive(Debug)]
pub(super) struct Restoring {
    pub(super) images: PathBuf,
    pub(super) spec: Spec,
    /// Whether the container has a seccomp filter.
    pub(super) filtered: bool,
}

impl Restoring {
    /// CRIU has ended: the container's process takes the place of CRIU's, if it is what it should be.
    /// After a refusal the container is to be killed.
    pub(super) fn finish(
        &self,
        container: &mut Container,
        status: WaitStatus,
    ) -> Result<(), Refusal> {
        if status.exit_status() != Some(0) {
            return Err(failed(&self.images, status));
        }
        let pid = kelson_runtime::restored(&self.images).map_err(|error| launch_refusal(&error))?;
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let process = process.ok_or_else(|| Refusal {
            kind: RefusalKind::Setup,
            message: format!("CRIU has restored a process with the number {pid}"),
        })?;
        let pidfd = rustix::process::pidfd_open(process, PidfdFlags::empty())
            .map_err(|error| internal("open the restored process", error))?;
        kelson_runtime::check(&self.spec, &container.cgroup, pid, self.filtered)
            .map_err(|error| launch_refusal(&error))?;
        let pids = container.cgroup.pids();
        let pids = pids.map_err(|error| refusal(RefusalKind::Internal, &error))?;
        for pid in pids {
            // They are stopped, and in the container's cgroup: the number is nobody else's.
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, Signal::CONT);
            }
        }
        (container.pid, container.pidfd) = (pid, pidfd);
        Ok(())
    }
}

fn failed(images: &Path, status: WaitStatus) -> Refusal {
    let reason = kelson_checkpoint::reason(&images.join(RESTORE_LOG));
    let message = match (reason, status.exit_status()) {
        (Some(reason), _) => format!("CRIU: {reason}"),
        (None, Some(code)) => format!("CRIU ended with code {code} and without a reason"),
        (None, None) => "CRIU was killed".to_owned(),
    };
    Refusal {
        kind: RefusalKind::Setup,
        message,
    }
}
