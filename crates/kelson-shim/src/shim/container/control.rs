//! What may be asked of a container: signals, a new log, to be forgotten.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::process::Signal;

use crate::ids::ContainerId;
use crate::proto::{Refusal, RefusalKind, SignalRequest};
use crate::shim::{KILL_WAIT, Shim, internal, refusal};

impl Shim {
    pub(in crate::shim) fn signal(&mut self, request: SignalRequest) -> Result<(), Refusal> {
        let SignalRequest {
            container: id,
            signal,
            all,
        } = request;
        if !(1..=64).contains(&signal) {
            let message = format!("{signal} is not the number of a signal");
            return Err(Refusal {
                kind: RefusalKind::Invalid,
                message,
            });
        }
        let (_, container) = self.running(id)?;
        if !all {
            let sent = kelson_sys::process::pidfd_send_signal(container.pidfd.as_fd(), signal);
            return match sent {
                // It has just ended; the event follows.
                Ok(()) | Err(Errno::SRCH) => Ok(()),
                Err(error) => Err(internal("signal the container", error)),
            };
        }
        let sent = match Signal::from_named_raw(signal) {
            Some(Signal::KILL) => container.cgroup.kill(KILL_WAIT),
            Some(signal) => container.cgroup.signal(signal),
            None => {
                let message = format!("signal {signal} can only be sent to a first process");
                return Err(Refusal {
                    kind: RefusalKind::Invalid,
                    message,
                });
            }
        };
        match sent {
            // All were killed, and take their time.
            Ok(()) | Err(kelson_cgroup::Error::NotEmpty { .. }) => Ok(()),
            Err(error) => Err(refusal(RefusalKind::Internal, &error)),
        }
    }

    pub(in crate::shim) fn reopen(&mut self, id: ContainerId) -> Result<(), Refusal> {
        let (serial, _) = self.running(id)?;
        let Some(container) = self.containers.get_mut(&serial) else {
            return Ok(());
        };
        container
            .log
            .reopen()
            .map_err(|error| internal("open the log again", error))
    }

    pub(in crate::shim) fn forget(&mut self, id: ContainerId) -> Result<(), Refusal> {
        if self.containers.values().any(|container| container.id == id) {
            let message = format!("container {id} is still running; stop it first");
            return Err(Refusal {
                kind: RefusalKind::Invalid,
                message,
            });
        }
        self.ended.retain(|ended| ended.id != id);
        self.remove_container_dir(id);
        Ok(())
    }
}
