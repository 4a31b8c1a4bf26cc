//! Becoming the user: groups, ids and capabilities, in the one order that loses nothing too early
//! and keeps nothing too long.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use super::{Failure, NewProcess, OrFail};

/// Reduces the bounding set, changes the ids, then sets the capabilities.
pub(super) fn become_user(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    let available = rustix::thread::capabilities(None)
        .or_fail(|| "cannot read the capabilities".into())?
        .permitted
        .bits();
    let wanted = process.plan.capabilities;
    let sets = wanted.within(available);
    let missing = (wanted.permitted | wanted.bounding) & !available;
    if missing != 0 {
        let names = crate::plan::capability_names(missing);
        process
            .channel
            .note(format!("not available here and left out: {names}"));
    }
    drop_bounding(sets.bounding)?;
    rustix::thread::set_keep_capabilities(true)
        .or_fail(|| "cannot keep capabilities over the change of user".into())?;
    change_ids(process)?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::from_bits_retain(sets.effective),
            permitted: CapabilitySet::from_bits_retain(sets.permitted),
            inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
        },
    )
    .or_fail(|| "cannot set the capabilities".into())?;
    rustix::thread::clear_ambient_capability_set()
        .or_fail(|| "cannot clear the ambient capabilities".into())?;
    for bit in bits(sets.ambient) {
        rustix::thread::configure_capability_in_ambient_set(bit, true)
            .or_fail(|| "cannot set the ambient capabilities".into())?;
    }
    Ok(())
}

/// Drops every capability that the kernel knows and `keep` does not have.
fn drop_bounding(keep: u64) -> Result<(), Failure> {
    for bit in bits(!keep) {
        match rustix::thread::capability_is_in_bounding_set(bit) {
            Ok(false) => continue,
            Ok(true) => {}
            // Above the last that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(e) => return Err(Failure::errno("cannot read the bounding set", e)),
        }
        rustix::thread::remove_capability_from_bounding_set(bit)
            .or_fail(|| "cannot reduce the bounding set".into())?;
    }
    Ok(())
}

fn bits(mask: u64) -> impl Iterator<Item = CapabilitySet> {
    (0..64)
        .map(|n| 1 << n)
        .filter(move |bit| mask & bit != 0)
        .map(CapabilitySet::from_bits_retain)
}

fn change_ids(process: &NewProcess<'_>) -> Result<(), Failure> {
    let plan = process.plan;
    let groups: Vec<Gid> = plan.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        Ok(()) => {}
        // A user namespace whose maker may not change groups: there are none to lose.
        Err(Errno::PERM) if groups.is_empty() => {}
        Err(e) => return Err(Failure::errno("cannot set the supplementary groups", e)),
    }
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .or_fail(|| format!("cannot become group {}", plan.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .or_fail(|| format!("cannot become user {}", plan.uid))
}
