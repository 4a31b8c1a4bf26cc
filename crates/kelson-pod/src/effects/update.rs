//! Changing what a container may use: its cgroup, and the specification that it is or will be started with.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use kelson_shim::ids::ContainerId;
use kelson_store::Batch;

use crate::config::Resources;
use crate::error::{Mistake, Mistakes, PodError, chain};
use crate::record::SpecRecord;
use crate::spec;
use crate::world::World;

/// What to change.
pub(crate) struct Request {
    pub(crate) id: ContainerId,
    /// Its cgroup when it runs.
    pub(crate) cgroup: Option<String>,
    /// What it has.
    pub(crate) before: Resources,
    /// What is to change: fields that are given.
    pub(crate) change: Resources,
}

/// What came of it.
pub(crate) struct Updated {
    /// What the container has now.
    pub(crate) resources: Resources,
    /// Its specification, to be saved by the pod's task unless the container is being removed.
    pub(crate) save: Batch,
}

/// Changes it. After a failure it has what it had.
pub(crate) async fn run(world: Arc<World>, request: Request) -> Result<Updated, PodError> {
    world.blocking(move |world| change(world, &request)).await
}

fn change(world: &World, request: &Request) -> Result<Updated, PodError> {
    let step = |error| PodError::step("change the container's specification", error);
    let id = request.id;
    let after = merged(&request.before, &request.change);
    let record: Option<SpecRecord> = world.store.get(id.as_str()).map_err(step)?;
    let mut record = record.ok_or(PodError::NoSuchContainer(id))?;
    spec::change_resources(&mut record.spec, &after, &world.rules);
    let mut save = Batch::new();
    save.put(id.as_str(), &record).map_err(step)?;
    if let Some(cgroup) = &request.cgroup {
        check_use(world, cgroup, request.change.memory_limit)?;
        let wanted = limits(&request.change, &after);
        if let Err(error) = world.cgroups.apply(cgroup, &wanted) {
            // Some limits may be set already.
            let before = limits(&request.before, &request.before);
            if let Err(error) = world.cgroups.apply(cgroup, &before) {
                tracing::warn!(container = %id, error = %chain(&error), "limits are not as they were");
            }
            return Err(PodError::step("change the container's limits", error));
        }
        if request.change.oom_score_adj != 0 {
            let score = spec::oom_score(&after, &world.rules);
            set_oom_score(Path::new("/proc"), &pids(world, cgroup), score);
        }
    }
    Ok(Updated {
        resources: after,
        save,
    })
}

/// What a container has after a change: fields that are zero or empty in it stay as they are.
pub(crate) fn merged(before: &Resources, change: &Resources) -> Resources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: &String| if new.is_empty() { old } else { new }.clone();
    let mut hugepages = before.hugepages.clone();
    for (size, limit) in &change.hugepages {
        match hugepages.iter_mut().find(|(known, _)| known == size) {
            Some(known) => known.1 = *limit,
            None => hugepages.push((size.clone(), *limit)),
        }
    }
    let mut unified = before.unified.clone();
    unified.extend(change.unified.clone());
    Resources {
        cpu_period: number(before.cpu_period, change.cpu_period),
        cpu_quota: number(before.cpu_quota, change.cpu_quota),
        cpu_shares: number(before.cpu_shares, change.cpu_shares),
        memory_limit: number(before.memory_limit, change.memory_limit),
        memory_swap_limit: number(before.memory_swap_limit, change.memory_swap_limit),
        oom_score_adj: number(before.oom_score_adj, change.oom_score_adj),
        cpuset_cpus: text(&before.cpuset_cpus, &change.cpuset_cpus),
        cpuset_mems: text(&before.cpuset_mems, &change.cpuset_mems),
        hugepages,
        unified,
    }
}

/// The limits to set for a change that leads to `after`.
fn limits(change: &Resources, after: &Resources) -> kelson_cgroup::Resources {
    let unsigned = |value: i64| u64::try_from(value).ok().filter(|value| *value != 0);
    let signed = |value: i64| (value != 0).then_some(value);
    let list = |list: &String| (!list.is_empty()).then(|| list.clone());
    // Memory and memory with swap bound each other: who changes one means the other to be kept.
    let memory = change.memory_limit != 0 || change.memory_swap_limit != 0;
    // So do a quota and its period.
    let cpu = change.cpu_quota != 0 || change.cpu_period != 0;
    let limit = |(page_size, limit): &(String, u64)| kelson_cgroup::HugepageLimit {
        page_size: page_size.clone(),
        limit: *limit,
    };
    kelson_cgroup::Resources {
        cpu_shares: unsigned(change.cpu_shares),
        cpu_quota: signed(after.cpu_quota).filter(|_| cpu),
        cpu_period: unsigned(after.cpu_period).filter(|_| cpu),
        cpuset_cpus: list(&change.cpuset_cpus),
        cpuset_mems: list(&change.cpuset_mems),
        memory_limit: signed(after.memory_limit).filter(|_| memory),
        memory_swap: signed(after.memory_swap_limit).filter(|_| memory),
        hugepages: change.hugepages.iter().map(limit).collect(),
        unified: change.unified.clone(),
        ..kelson_cgroup::Resources::default()
    }
}

/// Memory that is in use cannot be taken away: the kernel of v1 refuses, that of v2 kills.
fn check_use(world: &World, cgroup: &str, limit: i64) -> Result<(), PodError> {
    let Some(limit) = u64::try_from(limit).ok().filter(|limit| *limit != 0) else {
        return Ok(());
    };
    let used = world
        .cgroups
        .usage(cgroup)
        .map_err(|error| PodError::step("find out how much memory the container uses", error))?
        .map_or(0, |stats| stats.memory.working_set);
    if limit >= used {
        return Ok(());
    }
    Err(PodError::Invalid(Mistakes(vec![Mistake {
        field: "linux.memory_limit_in_bytes".to_owned(),
        problem: format!("{limit} is below the {used} bytes that the container uses now"),
        unsupported: false,
    }])))
}

fn pids(world: &World, cgroup: &str) -> Vec<u32> {
    world.cgroups.pids(cgroup).unwrap_or_else(|error| {
        tracing::debug!(cgroup, error = %chain(&error), "processes are not found");
        Vec::new()
    })
}

/// Where it is permitted: lowering it needs a capability that the daemon may lack.
fn set_oom_score(proc_root: &Path, pids: &[u32], score: i32) {
    for pid in pids {
        let path = proc_root.join(pid.to_string()).join("oom_score_adj");
        if let Err(error) = fs::write(&path, score.to_string()) {
            tracing::debug!(path = %path.display(), %error, "an OOM score stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays() {
        let before = Resources {
            cpu_shares: 512,
            cpu_quota: 5000,
            memory_limit: 64,
            memory_swap_limit: 128,
            cpuset_cpus: "0".into(),
            hugepages: vec![("2MB".into(), 1)],
            ..Resources::default()
        };
        assert_eq!(merged(&before, &Resources::default()), before);
        let change = Resources {
            cpu_quota: -1,
            memory_limit: 96,
            hugepages: vec![("1GB".into(), 2), ("2MB".into(), 3)],
            ..Resources::default()
        };
        let after = merged(&before, &change);
        assert_eq!((after.cpu_shares, after.cpu_quota), (512, -1));
        assert_eq!((after.memory_limit, after.memory_swap_limit), (96, 128));
        assert_eq!(after.cpuset_cpus, "0");
        assert_eq!(
            after.hugepages,
            [("2MB".to_owned(), 3), ("1GB".to_owned(), 2)]
        );

        let set = limits(&change, &after);
        assert_eq!((set.cpu_shares, set.cpu_quota), (None, Some(-1)));
        assert_eq!((set.memory_limit, set.memory_swap), (Some(96), Some(128)));
        assert_eq!(set.cpuset_cpus, None);
        let shares = Resources {
            cpu_shares: 2,
            ..Resources::default()
        };
        let set = limits(&shares, &merged(&after, &shares));
        assert_eq!(
            (set.cpu_shares, set.memory_limit, set.memory_swap),
            (Some(2), None, None)
        );
    }

    #[test]
    fn a_score_is_written_for_every_process_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("7")).unwrap();
        set_oom_score(dir.path(), &[6, 7], -5);
        let written = fs::read_to_string(dir.path().join("7/oom_score_adj")).unwrap();
        assert_eq!(written, "-5");
    }
}
