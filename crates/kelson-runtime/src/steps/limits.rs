//! Limits and priorities of a process. What only CAP_SYS_RESOURCE permits is reduced to what is
//! permitted, and told.

use kelson_sys::process;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Rlimit, getrlimit, setrlimit};

use super::{Failure, NewProcess, OrFail};
use crate::plan;

/// Sets `oom_score_adj`, or the nearest permitted value.
pub(super) fn oom_score_adj(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    let Some(wanted) = process.plan.oom_score_adj else {
        return Ok(());
    };
    let wanted = wanted.clamp(-1000, 1000);
    let what = || format!("cannot set oom_score_adj to {wanted}");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let path = c"self/oom_score_adj";
    let file = match rustix::fs::openat(&process.proc, path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::ACCESS | Errno::PERM) => {
            if current_adjustment(process) != Some(wanted) {
                let text = format!("oom_score_adj stays as it is, {wanted} is not permitted");
                process.channel.note(text);
            }
            return Ok(());
        }
        Err(e) => return Err(Failure::errno(what(), e)),
    };
    // Lowering needs a capability; 0 is often permitted where less is not.
    for value in [wanted, wanted.max(0)] {
        match rustix::io::write(&file, value.to_string().as_bytes()) {
            Ok(_) if value == wanted => return Ok(()),
            Ok(_) => {
                let text = format!("oom_score_adj is {value}, {wanted} needs CAP_SYS_RESOURCE");
                process.channel.note(text);
                return Ok(());
            }
            Err(Errno::ACCESS | Errno::PERM) => {}
            Err(e) => return Err(Failure::errno(what(), e)),
        }
    }
    let text = format!("oom_score_adj stays as it is, {wanted} needs CAP_SYS_RESOURCE");
    process.channel.note(text);
    Ok(())
}

/// What `oom_score_adj` is.
fn current_adjustment(process: &NewProcess<'_>) -> Option<i32> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let path = c"self/oom_score_adj";
    let file = rustix::fs::openat(&process.proc, path, flags, Mode::empty()).ok()?;
    let mut buffer = [0; 16];
    let n = rustix::io::read(&file, &mut buffer).ok()?;
    std::str::from_utf8(&buffer[..n]).ok()?.trim().parse().ok()
}

/// Sets rlimits, scheduling, I/O priority, personality and umask.
pub(super) fn apply(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    for limit in &process.plan.rlimits {
        set_rlimit(process, limit)?;
    }
    if let Some(scheduling) = &process.plan.scheduling {
        process::set_scheduling(scheduling)
            .or_fail(|| "cannot set the scheduling policy".into())?;
    }
    if let Some((class, priority)) = process.plan.io_priority {
        process::set_io_priority(class, priority)
            .or_fail(|| "cannot set the I/O priority".into())?;
    }
    if let Some(personality) = process.plan.personality {
        process::set_personality(personality).or_fail(|| "cannot set the personality".into())?;
    }
    rustix::process::umask(Mode::from_raw_mode(process.plan.umask));
    Ok(())
}

/// Raises hard limits as far as they will have to be, while there is the host's right to do so. What
/// cannot be raised is told where the limits are set.
pub(super) fn raise(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    for limit in &process.plan.rlimits {
        let now = getrlimit(limit.resource);
        let higher = match (limit.hard, now.maximum) {
            (Some(wanted), Some(highest)) => wanted > highest,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if higher {
            let raised = Rlimit {
                current: now.current,
                maximum: limit.hard,
            };
            let _ = setrlimit(limit.resource, raised);
        }
    }
    Ok(())
}

fn set_rlimit(process: &NewProcess<'_>, limit: &plan::Rlimit) -> Result<(), Failure> {
    let what = || format!("cannot set {}", limit.kind);
    let wanted = Rlimit {
        current: limit.soft,
        maximum: limit.hard,
    };
    match setrlimit(limit.resource, wanted) {
        Err(Errno::PERM) => {}
        other => return other.or_fail(what),
    }
    let highest = getrlimit(limit.resource).maximum;
    let least = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let permitted = Rlimit {
        current: least(limit.soft, highest),
        maximum: least(limit.hard, highest),
    };
    setrlimit(limit.resource, permitted).or_fail(what)?;
    let show = |n: Option<u64>| n.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
    process.channel.note(format!(
        "{} is {}:{}, more needs CAP_SYS_RESOURCE",
        limit.kind,
        show(permitted.current),
        show(permitted.maximum)
    ));
    Ok(())
}
