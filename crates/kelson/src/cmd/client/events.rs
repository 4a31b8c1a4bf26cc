//! `kelson events`: what happens to containers, from now on, until interrupted.

use anyhow::Result;
use kelson_client::Client;
use kelson_cri::v1::{ContainerEventResponse, ContainerEventType};

use super::view::EventView;
use crate::ui::{self, Format, Io, Output, text};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let mut events = client.events().await?;
    while let Some(event) = events.next().await? {
        match args.output.format {
            Format::Table => writeln!(io.out, "{}", line(&event))?,
            Format::Json => {
                // One event on one line, so that a reader need not find its end.
                serde_json::to_writer(&mut *io.out, &EventView::from(event))?;
                writeln!(io.out)?;
            }
            Format::Yaml => {
                writeln!(io.out, "---")?;
                ui::structured(io.out, Format::Yaml, &EventView::from(event))?;
            }
        }
        io.out.flush()?;
    }
    writeln!(io.err, "the runtime has ended the stream of events")?;
    Ok(0)
}

fn line(event: &ContainerEventResponse) -> String {
    let what = match event.container_event_type() {
        ContainerEventType::ContainerCreatedEvent => "created",
        ContainerEventType::ContainerStartedEvent => "started",
        ContainerEventType::ContainerStoppedEvent => "stopped",
        ContainerEventType::ContainerDeletedEvent => "deleted",
    };
    let pod = event
        .pod_sandbox_status
        .as_ref()
        .and_then(|status| status.metadata.as_ref());
    let pod = pod
        .map(|pod| format!("{}/{}", pod.namespace, pod.name))
        .unwrap_or_default();
    let status = event
        .containers_statuses
        .iter()
        .find(|status| status.id == event.container_id);
    let name = status
        .and_then(|status| status.metadata.as_ref())
        .map_or("", |m| &m.name);
    let exit = match (event.container_event_type(), status) {
        (ContainerEventType::ContainerStoppedEvent, Some(status)) if status.finished_at > 0 => {
            format!("  exit {} {}", status.exit_code, status.reason)
        }
        _ => String::new(),
    };
    let time = text::timestamp(event.created_at);
    let id = text::short_id(&event.container_id);
    // The event of a sandbox itself carries the id of the pod and no container of that id.
    format!("{time}  {what}  {id}  {pod}  {name}{exit}")
        .trim_end()
        .to_owned()
}
