//! `kelson stats`: what running containers use.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use kelson_client::Client;
use kelson_cri::v1::{ContainerStats, ListContainerStatsRequest, UInt64Value};

use super::target::{Inventory, Target, pod_name};
use super::view::{self, ContainerStatsView};
use crate::ui::table::Table;
use crate::ui::{self, Format, Io, Output, text};

/// Processor time is measured over this time, and repeated with `--watch`.
const INTERVAL: Duration = Duration::from_secs(1);
/// Moves to the upper left corner and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[J";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these pods and containers: ids, beginnings of ids, or names
    #[arg(value_name = "POD|CONTAINER")]
    targets: Vec<String>,
    /// Go on until interrupted
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let mut stats = sample(client, &args.targets).await?.1;
    if args.output.format != Format::Table {
        loop {
            let items: Vec<ContainerStatsView> = stats.into_iter().map(Into::into).collect();
            ui::structured(io.out, args.output.format, &view::list("stats", items))?;
            if !args.watch {
                return Ok(0);
            }
            io.out.flush()?;
            tokio::time::sleep(INTERVAL).await;
            stats = sample(client, &args.targets).await?.1;
        }
    }
    loop {
        let earlier: BTreeMap<String, (i64, u64)> = stats
            .iter()
            .filter_map(|s| Some((id(s).to_owned(), processor_time(s)?)))
            .collect();
        tokio::time::sleep(INTERVAL).await;
        let (inventory, later) = sample(client, &args.targets).await?;
        let table = table(&later, &earlier, &inventory);
        if !args.watch {
            table.write(io.out)?;
            return Ok(0);
        }
        // The whole picture in one write, so that it does not flicker.
        let mut picture = CLEAR.as_bytes().to_vec();
        table.write(&mut picture)?;
        io.out.write_all(&picture)?;
        io.out.flush()?;
        stats = later;
    }
}

async fn sample(client: &Client, targets: &[String]) -> Result<(Inventory, Vec<ContainerStats>)> {
    let inventory = Inventory::take(client).await?;
    let wanted: Vec<Target> = targets
        .iter()
        .map(|target| inventory.find(target))
        .collect::<Result<_>>()?;
    let request = ListContainerStatsRequest::default();
    let mut stats = client.list_container_stats(request).await?.stats;
    let pod = |id: &str| {
        let container = inventory
            .containers
            .iter()
            .find(|container| container.id == id);
        container.map_or("", |container| &container.pod_sandbox_id)
    };
    stats.retain(|stats| {
        wanted.is_empty()
            || wanted.iter().any(|target| match target {
                Target::Container(container) => container.id == id(stats),
                Target::Pod(wanted) => wanted.id == pod(id(stats)),
            })
    });
    Ok((inventory, stats))
}

fn id(stats: &ContainerStats) -> &str {
    stats
        .attributes
        .as_ref()
        .map_or("", |attributes| &attributes.id)
}

/// When it was measured and how much it was, both in nanoseconds.
fn processor_time(stats: &ContainerStats) -> Option<(i64, u64)> {
    let cpu = stats.cpu.as_ref()?;
    Some((cpu.timestamp, cpu.usage_core_nano_seconds.as_ref()?.value))
}

fn table(
    stats: &[ContainerStats],
    earlier: &BTreeMap<String, (i64, u64)>,
    inventory: &Inventory,
) -> Table {
    let headings = [
        "CONTAINER ID",
        "NAME",
        "POD",
        ">CPU %",
        ">MEMORY",
        ">DISK",
        ">INODES",
    ];
    let mut table = Table::new(&headings);
    for stats in stats {
        let container = inventory.containers.iter().find(|c| c.id == id(stats));
        let pod = container.and_then(|container| inventory.pod_of(container));
        let metadata = stats.attributes.as_ref().and_then(|a| a.metadata.as_ref());
        let show = |number: Option<&UInt64Value>, form: fn(u64) -> String| {
            number.map_or_else(|| "-".into(), |number| form(number.value))
        };
        let memory = stats
            .memory
            .as_ref()
            .and_then(|memory| memory.working_set_bytes.as_ref());
        let layer = stats.writable_layer.as_ref();
        table.row([
            text::short_id(id(stats)).to_owned(),
            metadata.map_or_else(String::new, |metadata| metadata.name.clone()),
            pod.map_or("", pod_name).to_owned(),
            percent(earlier.get(id(stats)), processor_time(stats)),
            show(memory, text::memory),
            show(
                layer.and_then(|layer| layer.used_bytes.as_ref()),
                text::size,
            ),
            show(
                layer.and_then(|layer| layer.inodes_used.as_ref()),
                |count| count.to_string(),
            ),
        ]);
    }
    table
}

/// Share of one processor between two measurements. A runtime may answer twice from one measurement.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn percent(earlier: Option<&(i64, u64)>, later: Option<(i64, u64)>) -> String {
    match (earlier, later) {
        (Some(&(t0, used0)), Some((t1, used1))) if t1 > t0 => {
            format!(
                "{:.2}",
                used1.saturating_sub(used0) as f64 * 100.0 / (t1 - t0) as f64
            )
        }
        _ => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_a_share_of_one_processor() {
        assert_eq!(percent(Some(&(1_000, 500)), Some((2_000, 1_750))), "125.00");
        assert_eq!(percent(Some(&(1_000, 500)), Some((1_000, 500))), "-");
        assert_eq!(percent(None, Some((1_000, 500))), "-");
        assert_eq!(percent(Some(&(1_000, 500)), Some((2_000, 400))), "0.00");
    }
}
