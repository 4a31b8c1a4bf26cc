//! Kernel parameters and the names of the machine.

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Container, Failure, OrFail};

/// Sets both, through the host's procfs: it shows the caller's own namespaces, and no image can
/// have put anything in its place.
pub(super) fn apply(container: &mut Container<'_>) -> Result<(), Failure> {
    if let Some(name) = &container.plan.hostname {
        rustix::system::sethostname(name.as_bytes())
            .or_fail(|| format!("cannot set the host name to {name:?}"))?;
    }
    if let Some(name) = &container.plan.domainname {
        kelson_sys::process::set_domain_name(name.as_bytes())
            .or_fail(|| format!("cannot set the domain name to {name:?}"))?;
    }
    if container.plan.sysctls.is_empty() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let sys = rustix::fs::openat(&container.process.proc, c"sys", flags, Mode::empty())
        .or_fail(|| "cannot open /proc/sys".into())?;
    for sysctl in &container.plan.sysctls {
        let what = || {
            format!(
                "cannot set kernel parameter {} to {:?}",
                sysctl.path.display(),
                sysctl.value
            )
        };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let file =
            rustix::fs::openat2(&sys, &sysctl.path, flags, Mode::empty(), resolve).or_fail(what)?;
        rustix::io::write(&file, sysctl.value.as_bytes()).or_fail(what)?;
    }
    Ok(())
}
