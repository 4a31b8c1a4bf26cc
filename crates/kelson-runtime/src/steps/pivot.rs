//! Making the container's root the root.

use std::os::fd::AsFd;

use kelson_sys::mount::{self, Attributes, Propagation};
use rustix::fs::{Mode, OFlags};

use super::{Container, Failure, OrFail};

/// Enters the root and leaves nothing of the host's tree behind.
pub(super) fn enter(container: &mut Container<'_>) -> Result<(), Failure> {
    let root = container.root()?;
    rustix::process::fchdir(root.as_fd()).or_fail(|| "cannot enter the root".into())?;
    if container.process.options.no_pivot {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let old =
            rustix::fs::open(c"/", flags, Mode::empty()).or_fail(|| "cannot open /".into())?;
        mount::attach(root.as_fd(), old.as_fd())
            .or_fail(|| "cannot move the root over /".into())?;
        rustix::process::chroot(c".").or_fail(|| "cannot change the root".into())?;
        rustix::process::chdir(c"/").or_fail(|| "cannot enter the root".into())?;
    } else {
        mount::pivot_to_cwd().or_fail(|| "cannot make the root the root".into())?;
    }
    if let Some(propagation @ (Propagation::Shared | Propagation::Unbindable)) =
        container.plan.root_propagation
    {
        let change = Attributes {
            propagation: Some(propagation),
            ..Attributes::default()
        };
        mount::set_attributes(root.as_fd(), &change, false)
            .or_fail(|| "cannot set the propagation of the root".into())?;
    }
    container.root = None;
    Ok(())
}
