//! cgroups as systemd's units: a slice for a pod, a scope for a container.
//!
//! systemd makes the cgroup and is told the limits, so that it does not undo them; everything else
//! is done in the cgroup itself as without it. A scope is handed over (`Delegate=yes`) and ends by
//! itself when its last process does. v2 only.

mod bus;
mod properties;
mod units;
mod wire;

use std::io;
use std::path::Path;
use std::time::Duration;

use bus::Bus;
use properties::{Property, Value};
use wire::Writer;

use crate::{Cgroup, Error, Hierarchy, Resources, Result, Version};

pub use units::slice_path;

/// How long one operation may take, with the job that it begins.
const LIMIT: Duration = Duration::from_secs(30);

/// What systemd answers when a unit is there already, and when there is none.
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// Why systemd did not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SystemdError {
    /// systemd is not process 1 of this machine.
    #[error("systemd does not manage this machine; set cgroup.driver to \"cgroupfs\"")]
    NotThere,
    /// cgroup v1 carries the controllers.
    #[error("the systemd driver needs cgroup v2; boot with systemd.unified_cgroup_hierarchy=1")]
    NotV2,
    /// Its socket cannot be reached.
    #[error("cannot connect to {socket}")]
    Connect {
        /// The socket.
        socket: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It does not take this process for root.
    #[error("it does not accept this user: {0}")]
    Rejected(String),
    /// It has closed the connection, or the connection failed.
    #[error("the connection to it was lost")]
    Lost(#[source] io::Error),
    /// No answer within 30 s.
    #[error("it did not answer in time")]
    Timeout,
    /// It sent what is no message.
    #[error("its answer is no D-Bus message")]
    Malformed,
    /// A message above 64 KiB.
    #[error("a message is longer than 65536 bytes")]
    TooLong,
    /// It refuses.
    #[error("{message} ({name})")]
    Refused {
        /// The name of the error.
        name: String,
        /// Its text.
        message: String,
    },
    /// The job did not end well.
    #[error("its job ended as {0:?}; see journalctl --unit")]
    Job(String),
}

impl SystemdError {
    fn connect(socket: &'static str, source: io::Error) -> Self {
        Self::Connect { socket, source }
    }

    fn is_refusal(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name == wanted)
    }
}

/// The systemd of this machine. Holds no connection.
#[derive(Debug, Clone, Copy)]
pub struct Systemd(());

impl Systemd {
    /// Asks systemd whether it answers; fails when it does not manage this machine.
    pub fn find(hierarchy: &Hierarchy) -> Result<Self> {
        let failed = |source| Error::Systemd {
            operation: "reach systemd for",
            unit: "-.slice".to_owned(),
            source,
        };
        if !Path::new("/run/systemd/system").exists() || !Bus::there() {
            return Err(failed(SystemdError::NotThere));
        }
        if hierarchy.version() != Version::V2 {
            return Err(failed(SystemdError::NotV2));
        }
        let mut bus = Bus::connect(LIMIT).map_err(failed)?;
        let mut name = Writer::default();
        name.text("-.slice");
        bus.manager("GetUnit", "s", &name.0).map_err(failed)?;
        Ok(Self(()))
    }

    /// Makes the slice whose cgroup `cgroup` is. Succeeds when it is there already.
    pub fn start_slice(&self, cgroup: &Cgroup) -> Result<()> {
        on("start", cgroup, |bus, unit, _| {
            let mut properties = accounting("Kelson pod");
            properties.push(("DefaultDependencies", Value::Bool(false)));
            match start(bus, unit, &properties) {
                Err(error) if error.is_refusal(EXISTS) => Ok(()),
                started => started,
            }
        })
    }

    /// Makes the scope whose cgroup `cgroup` is, with these limits and the process `pid` (as this
    /// process's pid namespace numbers it) in it. A scope is never empty: it ends with its last
    /// process. One of this name that has processes is left as it is.
    pub fn start_scope(&self, cgroup: &Cgroup, pid: u32, resources: &Resources) -> Result<()> {
        let limits = properties::of(resources)?;
        on("start", cgroup, |bus, unit, slice| {
            let mut properties = accounting("Kelson container");
            properties.extend([
                ("Slice", Value::Text(slice.to_owned())),
                ("Delegate", Value::Bool(true)),
                ("DefaultDependencies", Value::Bool(false)),
                ("PIDs", Value::Pids(vec![pid])),
            ]);
            properties.extend(limits);
            match start(bus, unit, &properties) {
                Err(error) if error.is_refusal(EXISTS) => {
                    if cgroup.populated().unwrap_or(false) {
                        return Ok(());
                    }
                    // It is ending, or has failed and was not forgotten.
                    end(bus, unit)?;
                    start(bus, unit, &properties)
                }
                started => started,
            }
        })
    }

    /// Tells the limits that are set of the unit whose cgroup `cgroup` is.
    pub fn limit(&self, cgroup: &Cgroup, resources: &Resources) -> Result<()> {
        let limits = properties::of(resources)?;
        if limits.is_empty() {
            return Ok(());
        }
        on("limit", cgroup, |bus, unit, _| {
            let mut body = Writer::default();
            body.text(unit);
            // Until the machine is started anew, as the unit itself.
            body.u32(1);
            properties::write(&mut body, &limits);
            bus.manager("SetUnitProperties", "sba(sv)", &body.0)
                .map(drop)
        })
    }

    /// Ends the unit whose cgroup `cgroup` is, with every process in it. Succeeds when there is none.
    pub fn stop(&self, cgroup: &Cgroup) -> Result<()> {
        on("stop", cgroup, |bus, unit, _| end(bus, unit))
    }
}

/// Whether the cgroup at `path` belongs to a unit of its own that this crate can make and end.
pub fn is_unit(path: &str) -> bool {
    units::unit(path).is_some()
}

/// Does something with the unit of a cgroup, and its slice.
fn on(
    operation: &'static str,
    cgroup: &Cgroup,
    work: impl FnOnce(&mut Bus, &str, &str) -> Result<(), SystemdError>,
) -> Result<()> {
    let path = cgroup.path();
    let Some((unit, slice)) = units::unit(path) else {
        return Err(Error::Path {
            path: path.chars().take(200).collect(),
            reason: "it is not the cgroup of a scope or a slice",
        });
    };
    let done = Bus::connect(LIMIT).and_then(|mut bus| work(&mut bus, unit, slice));
    done.map_err(|source| Error::Systemd {
        operation,
        unit: unit.to_owned(),
        source,
    })
}

fn accounting(description: &str) -> Vec<Property> {
    let mut all = vec![("Description", Value::Text(description.to_owned()))];
    all.extend(
        [
            "CPUAccounting",
            "MemoryAccounting",
            "IOAccounting",
            "TasksAccounting",
        ]
        .map(|name| (name, Value::Bool(true))),
    );
    all
}

/// Starts a transient unit and waits until it is there.
fn start(bus: &mut Bus, unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
    let mut body = Writer::default();
    body.text(unit);
    body.text("replace");
    properties::write(&mut body, properties);
    body.array(8, |_| ());
    let answer = bus.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", &body.0)?;
    bus.finish(&answer.body().text()?)
}

/// Stops a unit, waits until it is gone, and forgets it if it had failed.
fn end(bus: &mut Bus, unit: &str) -> Result<(), SystemdError> {
    let mut body = Writer::default();
    body.text(unit);
    let reset = body.0.clone();
    body.text("replace");
    match bus.manager("StopUnit", "ss", &body.0) {
        Ok(answer) => bus.finish(&answer.body().text()?)?,
        Err(error) if error.is_refusal(NO_SUCH_UNIT) => return Ok(()),
        Err(error) => return Err(error),
    }
    match bus.manager("ResetFailedUnit", "s", &reset) {
        Err(error) if !error.is_refusal(NO_SUCH_UNIT) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
