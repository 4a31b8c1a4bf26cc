//! What a new process does to itself between its clone and the execution of its program: two
//! tables of ordered steps, one for a container's first process and one for an exec.
//!
//! Each step is one small function that either succeeds or says what failed; the runner adds where.
//! Until the step `Pivot` the host's tree is still `/`: paths of the host are opened before it,
//! paths of the container are only ever resolved beneath [`Container::root`].
//!
//! A container in a user namespace is made by two processes, see [`user`].

mod cgroups;
mod command;
mod console;
mod devices;
mod execute;
mod gate;
mod hooks;
mod identity;
mod labels;
mod limits;
mod masks;
mod mounts;
mod namespaces;
mod overlay;
mod pivot;
mod prepare;
mod restorer;
mod rootfs;
mod sysctl;
mod user;

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use kelson_cgroup::{Cgroup, Entry};
use kelson_sys::root::{Root, RootError};
use kelson_sys::userns::IdRange;
use oci_spec::runtime::{Hook, Spec};
use rustix::io::Errno;

use crate::launch::UserNamespace;
use crate::plan::{ContainerPlan, ProcessPlan};
use crate::progress::{Channel, Message, cut};
use crate::restore::Restore;
use crate::{Kind, Options, Rootfs, Stdio, Step, seccomp};

/// A new process: what both tables work on.
pub(crate) struct NewProcess<'a> {
    pub(crate) plan: &'a ProcessPlan,
    pub(crate) stdio: Stdio,
    pub(crate) options: Options,
    pub(crate) seccomp: Option<&'a seccomp::Program>,
    pub(crate) entry: &'a Entry,
    /// The host's procfs, opened and verified by the maker.
    pub(crate) proc: OwnedFd,
    pub(crate) channel: Channel,
    /// Hooks that run just before the program.
    pub(crate) start_hooks: Vec<Hook>,
    /// The program, found by the step `Command`.
    pub(crate) program: CString,
    /// The environment that is added to the plan's.
    pub(crate) extra_env: Vec<CString>,
}

/// The first process of a container.
pub(crate) struct Container<'a> {
    pub(crate) process: NewProcess<'a>,
    pub(crate) spec: &'a Spec,
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) rootfs: &'a Rootfs,
    pub(crate) cgroup: &'a Cgroup,
    /// The user namespace that it gets.
    pub(crate) user: Option<UserNamespace>,
    /// By which its mounts are id-mapped, in the order of the plan.
    pub(crate) id_maps: Vec<Option<OwnedFd>>,
    /// What its mounts bind, in the order of the plan, cloned before propagation is changed.
    pub(crate) sources: Vec<Option<OwnedFd>>,
    /// The device nodes of the host that are bound, where nodes cannot be made, in the order of
    /// [`devices`].
    pub(crate) nodes: Vec<OwnedFd>,
    /// Its root, before it is attached.
    pub(crate) tree: Option<OwnedFd>,
    /// Its root, from the step `Rootfs` on.
    pub(crate) root: Option<Root>,
}

/// A further process in a container.
pub(crate) struct Further<'a> {
    pub(crate) process: NewProcess<'a>,
    pub(crate) init: OwnedFd,
    /// The user ids of the container, when it has a user namespace that is not the maker's.
    pub(crate) uids: Option<Vec<IdRange>>,
    /// Flags of the namespaces to join.
    pub(crate) namespaces: u64,
}

impl Container<'_> {
    /// The root; steps that need it come after the one that makes it.
    fn root(&self) -> Result<&Root, Failure> {
        self.root
            .as_ref()
            .ok_or_else(|| Failure::new("the root is not mounted yet"))
    }
}

type Steps<T> = [(Step, fn(&mut T) -> Result<(), Failure>)];

/// Starts a container's first process. Never returns: the program is executed, or the failure
/// told and the process ended.
pub(crate) fn run_container<'a>(mut container: Container<'a>) -> ! {
    let _end = EndOnUnwind;
    let prepare: &Steps<Container<'a>> = match container.user {
        None => &[
            (Step::Prepare, |c| prepare::run(&mut c.process)),
            (Step::Prepare, |c| prepare::session(&mut c.process)),
            (Step::Cgroup, namespaces::enter_cgroup),
            (Step::Limits, |c| limits::oom_score_adj(&mut c.process)),
            (Step::Namespaces, namespaces::enter),
            (Step::Hooks, hooks::pause_for_maker),
            (Step::Mounts, mounts::open_sources),
            (Step::Rootfs, rootfs::open),
            (Step::Mounts, mounts::open_layers),
        ],
        // What only the host's rights permit is done first; then the process that has them makes
        // the one that goes on in the user namespace, and ends.
        Some(_) => &[
            (Step::Prepare, |c| prepare::run(&mut c.process)),
            (Step::Limits, |c| limits::oom_score_adj(&mut c.process)),
            (Step::Limits, |c| limits::raise(&mut c.process)),
            (Step::Console, user::give_streams),
            (Step::Mounts, mounts::open_sources),
            (Step::Devices, devices::open),
            (Step::Rootfs, rootfs::open),
            (Step::Mounts, mounts::open_layers),
            (Step::Namespaces, user::go_on_inside),
            (Step::Prepare, |c| prepare::session(&mut c.process)),
            (Step::Cgroup, namespaces::enter_cgroup),
            (Step::Hooks, hooks::pause_for_maker),
        ],
    };
    run(prepare, &mut container, |c| &c.process.channel);
    let steps: &Steps<Container<'a>> = &[
        (Step::Rootfs, rootfs::attach),
        (Step::Mounts, mounts::mount),
        (Step::Devices, devices::make),
        (Step::Console, console::container_terminal),
        (Step::Hooks, hooks::create_container),
        (Step::Command, command::make_directory),
        (Step::Masks, masks::apply),
        (Step::Sysctl, sysctl::apply),
        (Step::Pivot, pivot::enter),
    ];
    run(steps, &mut container, |c| &c.process.channel);
    run_process(container.process)
}

/// Becomes CRIU, which restores a container. Never returns.
pub(crate) fn run_restore<'a>(
    mut container: Container<'a>,
    words: Vec<CString>,
    restore: &Restore<'_>,
) -> ! {
    let _end = EndOnUnwind;
    let steps: &Steps<Container<'a>> = &[
        (Step::Prepare, |c| prepare::run(&mut c.process)),
        (Step::Prepare, |c| prepare::session(&mut c.process)),
        (Step::Cgroup, namespaces::enter_cgroup),
        // What it restores begins with its own, which is the shim's otherwise.
        (Step::Limits, |c| limits::oom_score_adj(&mut c.process)),
        (Step::Rootfs, rootfs::open),
        (Step::Rootfs, rootfs::attach),
        (Step::Mounts, restorer::make_targets),
    ];
    run(steps, &mut container, |c| &c.process.channel);
    if let Err(failure) = restorer::execute(&mut container, words, restore) {
        let channel = &container.process.channel;
        channel.tell(&failure.message(Step::Execute));
    }
    kelson_sys::process::exit_now(1)
}

/// Starts a further process in a container. Never returns.
pub(crate) fn run_further<'a>(mut further: Further<'a>) -> ! {
    let _end = EndOnUnwind;
    let steps: &Steps<Further<'a>> = &[
        (Step::Prepare, |f| prepare::run(&mut f.process)),
        (Step::Cgroup, |f| namespaces::enter_cgroup_of(&f.process)),
        (Step::Limits, |f| limits::oom_score_adj(&mut f.process)),
        (Step::Limits, user::prepare_further),
        (Step::Namespaces, namespaces::join_container),
        (Step::Prepare, |f| prepare::session(&mut f.process)),
        (Step::Console, |f| console::further_terminal(&mut f.process)),
    ];
    run(steps, &mut further, |f| &f.process.channel);
    run_process(further.process)
}

/// What both have in common, inside the container's root.
fn run_process<'a>(mut process: NewProcess<'a>) -> ! {
    let _end = EndOnUnwind;
    let steps: &Steps<NewProcess<'a>> = &[
        (Step::Console, console::streams),
        (Step::Limits, limits::apply),
        (Step::Command, command::find),
        (Step::Gate, gate::wait),
        (Step::Hooks, hooks::start_container),
        (Step::Labels, labels::apply),
        (Step::Seccomp, execute::load_filter_early),
        (Step::Identity, identity::become_user),
        (Step::Command, command::enter_directory),
        (Step::Seccomp, execute::load_filter_late),
        (Step::Execute, execute::execute),
    ];
    run(steps, &mut process, |p| &p.channel);
    kelson_sys::process::exit_now(1)
}

/// Ends the process when a panic unwinds through it: the frames above belong to its maker.
struct EndOnUnwind;

impl Drop for EndOnUnwind {
    fn drop(&mut self) {
        kelson_sys::process::exit_now(1)
    }
}

fn run<T>(steps: &Steps<T>, subject: &mut T, channel: fn(&T) -> &Channel) {
    for (step, function) in steps {
        if let Err(failure) = function(subject) {
            channel(subject).tell(&failure.message(*step));
            kelson_sys::process::exit_now(1);
        }
    }
}

/// What failed in a step.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    errno: Option<Errno>,
    kind: Kind,
}

impl Failure {
    /// A failure that is not a system call's.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            errno: None,
            kind: Kind::Other,
        }
    }

    /// A failed system call.
    pub(crate) fn errno(what: impl Into<String>, errno: Errno) -> Self {
        Self {
            what: what.into(),
            errno: Some(errno),
            kind: Kind::Other,
        }
    }

    /// The same with more about why.
    pub(crate) fn because(mut self, why: &str) -> Self {
        self.what = format!("{why}: {}", self.what);
        self
    }

    /// The same with a kind.
    pub(crate) fn of(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    fn message(self, step: Step) -> Message {
        Message::Failed {
            step,
            kind: self.kind,
            what: cut(self.what),
            errno: self.errno.map(Errno::raw_os_error),
        }
    }
}

impl From<RootError> for Failure {
    fn from(error: RootError) -> Self {
        Self {
            what: error.to_string(),
            errno: error.errno(),
            kind: Kind::Other,
        }
    }
}

/// Turns the error of a system call into a [`Failure`].
pub(crate) trait OrFail<T> {
    /// `what` names the operation and its object.
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> OrFail<T> for rustix::io::Result<T> {
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|errno| Failure::errno(what(), errno))
    }
}

impl<T> OrFail<T> for std::io::Result<T> {
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|e| Failure {
            what: what(),
            errno: Errno::from_io_error(&e),
            kind: Kind::Other,
        })
    }
}

/// Paths that name the root of the new tree in errors.
fn label() -> PathBuf {
    PathBuf::from("the container's root")
}
