//! `update`, `pause` and `resume`.

use kelson_cgroup::Resources;
use oci_spec::runtime::LinuxResources;

use super::args::{Global, UpdateArgs};
use super::error::CliError;
use super::record::{Container, MAX_FILE, Status, read_json};
use crate::plan::resources;

/// Changes limits.
pub(super) fn update(global: &Global, args: &UpdateArgs) -> Result<u8, CliError> {
    let container = Container::open(global, &args.id)?;
    require(
        &container,
        &[Status::Created, Status::Running, Status::Paused],
    )?;
    let mut resources = match &args.resources {
        Some(path) => resources::from_spec(&read_resources(path)?, &[]),
        None => Resources::default(),
    };
    // Devices are fixed when the container is made.
    resources.devices.clear();
    let set = |place: &mut Option<_>, value: Option<_>| *place = value.or(*place);
    set(&mut resources.cpu_shares, args.cpu_share);
    set(&mut resources.cpu_period, args.cpu_period);
    set(&mut resources.cpu_burst, args.cpu_burst);
    let set = |place: &mut Option<i64>, value: Option<i64>| *place = value.or(*place);
    set(&mut resources.cpu_quota, args.cpu_quota);
    set(&mut resources.cpu_idle, args.cpu_idle);
    set(&mut resources.memory_limit, args.memory);
    set(&mut resources.memory_swap, args.memory_swap);
    set(&mut resources.memory_reservation, args.memory_reservation);
    set(&mut resources.pids_limit, args.pids_limit);
    resources.io_weight = args.blkio_weight.or(resources.io_weight);
    resources.cpuset_cpus = args.cpuset_cpus.clone().or(resources.cpuset_cpus);
    resources.cpuset_mems = args.cpuset_mems.clone().or(resources.cpuset_mems);
    container.cgroup()?.apply(&resources)?;
    Ok(0)
}

fn read_resources(path: &std::path::Path) -> Result<LinuxResources, CliError> {
    if path.as_os_str() != "-" {
        return read_json(path);
    }
    use std::io::Read;
    let mut text = Vec::new();
    std::io::stdin()
        .take(MAX_FILE)
        .read_to_end(&mut text)
        .map_err(|e| CliError::io("read", "standard input", e))?;
    serde_json::from_slice(&text).map_err(|source| CliError::Json {
        path: "standard input".into(),
        source,
    })
}

/// Stops all processes.
pub(super) fn pause(global: &Global, id: &str) -> Result<u8, CliError> {
    let container = Container::open(global, id)?;
    require(&container, &[Status::Created, Status::Running])?;
    container.cgroup()?.freeze()?;
    Ok(0)
}

/// Lets all processes go on.
pub(super) fn resume(global: &Global, id: &str) -> Result<u8, CliError> {
    let container = Container::open(global, id)?;
    require(&container, &[Status::Paused])?;
    container.cgroup()?.thaw()?;
    Ok(0)
}

fn require(container: &Container, allowed: &[Status]) -> Result<(), CliError> {
    let status = container.status()?;
    if allowed.contains(&status) {
        return Ok(());
    }
    let id = container.record.id.clone();
    Err(CliError::State {
        id,
        status,
        needed: "which this command cannot be used on",
    })
}
