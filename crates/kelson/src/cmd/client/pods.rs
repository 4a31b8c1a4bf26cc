//! `kelson pods`: lists pods, the newest first.

use std::collections::BTreeMap;

use anyhow::Result;
use kelson_client::Client;
use kelson_cri::v1::{
    ListPodSandboxRequest, PodSandbox, PodSandboxFilter, PodSandboxState, PodSandboxStateValue,
};

use super::target::{pod_name, pod_namespace};
use super::view::{self, PodItem};
use crate::ui::table::Table;
use crate::ui::{self, Format, Io, Output, text};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only pods of this name
    #[arg(long)]
    name: Option<String>,
    /// Only pods of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only pods in this state
    #[arg(short, long, value_enum)]
    state: Option<State>,
    /// Only pods with this label
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum State {
    Ready,
    Notready,
}

/// `key=value`; for flags of labels.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = pair.ok_or("write it as KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let filter = PodSandboxFilter {
        id: String::new(),
        state: args.state.map(|state| PodSandboxStateValue {
            state: match state {
                State::Ready => PodSandboxState::SandboxReady,
                State::Notready => PodSandboxState::SandboxNotready,
            }
            .into(),
        }),
        label_selector: args.labels.into_iter().collect::<BTreeMap<_, _>>(),
    };
    let request = ListPodSandboxRequest {
        filter: Some(filter),
    };
    let mut pods = client.list_pod_sandbox(request).await?.items;
    let fits = |wanted: &Option<String>, have: &str| wanted.as_ref().is_none_or(|w| w == have);
    pods.retain(|pod| fits(&args.name, pod_name(pod)) && fits(&args.namespace, pod_namespace(pod)));
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    if args.quiet {
        for pod in &pods {
            writeln!(io.out, "{}", pod.id)?;
        }
    } else if args.output.format == Format::Table {
        table(&pods, (io.now)()).write(io.out)?;
    } else {
        let items: Vec<PodItem> = pods.into_iter().map(Into::into).collect();
        ui::structured(io.out, args.output.format, &view::list("items", items))?;
    }
    Ok(0)
}

fn table(pods: &[PodSandbox], now: i64) -> Table {
    let headings = [
        "POD ID",
        "CREATED",
        "STATE",
        "NAME",
        "NAMESPACE",
        ">ATTEMPT",
        "RUNTIME",
    ];
    let mut table = Table::new(&headings);
    for pod in pods {
        let state = match pod.state() {
            PodSandboxState::SandboxReady => "Ready",
            PodSandboxState::SandboxNotready => "NotReady",
        };
        let attempt = pod.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
        let handler = pod.runtime_handler.as_str();
        table.row([
            text::short_id(&pod.id),
            &text::age(now, pod.created_at),
            state,
            pod_name(pod),
            pod_namespace(pod),
            &attempt.to_string(),
            if handler.is_empty() {
                "(default)"
            } else {
                handler
            },
        ]);
    }
    table
}
