//! `kelson ps`: lists containers, the newest first; the running ones unless all are asked for.

use std::collections::BTreeMap;

use anyhow::Result;
use kelson_client::Client;
use kelson_cri::v1::{
    Container, ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest,
    ListPodSandboxRequest, PodSandbox,
};

use super::pods::key_value;
use super::target::{Inventory, Target, container_name, pod_name};
use super::view::{self, ContainerItem};
use crate::ui::table::Table;
use crate::ui::{self, Format, Io, Output, text};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also containers that do not run
    #[arg(short, long)]
    all: bool,
    /// Only containers of this pod
    #[arg(short, long)]
    pod: Option<String>,
    /// Only containers of this name
    #[arg(long)]
    name: Option<String>,
    /// Only containers with this label
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let pod_sandbox_id = match &args.pod {
        None => String::new(),
        Some(wanted) => match Inventory::take(client).await?.find(wanted)? {
            Target::Pod(pod) => pod.id,
            Target::Container(container) => container.pod_sandbox_id,
        },
    };
    let filter = ContainerFilter {
        pod_sandbox_id,
        state: (!args.all).then(|| ContainerStateValue {
            state: ContainerState::ContainerRunning.into(),
        }),
        label_selector: args.labels.into_iter().collect::<BTreeMap<_, _>>(),
        ..Default::default()
    };
    let request = ListContainersRequest {
        filter: Some(filter),
    };
    let mut containers = client.list_containers(request).await?.containers;
    containers.retain(|c| {
        args.name
            .as_ref()
            .is_none_or(|name| name == container_name(c))
    });
    containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    if args.quiet {
        for container in &containers {
            writeln!(io.out, "{}", container.id)?;
        }
    } else if args.output.format == Format::Table {
        let pods = client
            .list_pod_sandbox(ListPodSandboxRequest::default())
            .await?
            .items;
        table(&containers, &pods, (io.now)()).write(io.out)?;
    } else {
        let items: Vec<ContainerItem> = containers.into_iter().map(Into::into).collect();
        ui::structured(io.out, args.output.format, &view::list("containers", items))?;
    }
    Ok(0)
}

fn table(containers: &[Container], pods: &[PodSandbox], now: i64) -> Table {
    let headings = [
        "CONTAINER ID",
        "IMAGE",
        "CREATED",
        "STATE",
        "NAME",
        ">ATTEMPT",
        "POD ID",
        "POD",
    ];
    let mut table = Table::new(&headings);
    for container in containers {
        let pod = pods.iter().find(|pod| pod.id == container.pod_sandbox_id);
        let attempt = container
            .metadata
            .as_ref()
            .map_or(0, |metadata| metadata.attempt);
        table.row([
            text::short_id(&container.id),
            image_name(container),
            &text::age(now, container.created_at),
            state(container.state()),
            container_name(container),
            &attempt.to_string(),
            text::short_id(&container.pod_sandbox_id),
            pod.map_or("", pod_name),
        ]);
    }
    table
}

/// A state in one word.
pub(crate) fn state(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerCreated => "Created",
        ContainerState::ContainerRunning => "Running",
        ContainerState::ContainerExited => "Exited",
        ContainerState::ContainerUnknown => "Unknown",
    }
}

/// What the user asked for, else what the runtime knows; an id is shortened.
fn image_name(container: &Container) -> &str {
    let spec = container.image.as_ref();
    let asked = spec
        .map(|spec| spec.user_specified_image.as_str())
        .filter(|name| !name.is_empty());
    let name = asked
        .or(spec.map(|spec| spec.image.as_str()))
        .unwrap_or(&container.image_ref);
    let is_id = name.starts_with("sha256:")
        || (name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if is_id { text::short_id(name) } else { name }
}
