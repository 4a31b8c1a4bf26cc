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
    // Sandboxes have events of their own, with the id of the pod.
    let pod_status = event.pod_sandbox_status.as_ref();
    let is_pod = pod_status.is_some_and(|status| status.id == event.container_id);
    let kind = if is_pod { "pod      " } else { "container" };
    format!("{time}  {kind} {what}  {id}  {pod}  {name}{exit}")
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use kelson_cri::v1::{
        ContainerMetadata, ContainerStatus, PodSandboxMetadata, PodSandboxStatus,
    };

    use super::*;

    #[test]
    fn an_event_is_one_line_with_the_names() {
        let metadata = PodSandboxMetadata {
            name: "web".into(),
            namespace: "default".into(),
            ..Default::default()
        };
        let mut event = ContainerEventResponse {
            container_id: "c1".into(),
            container_event_type: ContainerEventType::ContainerStoppedEvent.into(),
            created_at: 1_000_000_000,
            pod_sandbox_status: Some(PodSandboxStatus {
                id: "p1".into(),
                metadata: Some(metadata),
                ..Default::default()
            }),
            containers_statuses: vec![ContainerStatus {
                id: "c1".into(),
                metadata: Some(ContainerMetadata {
                    name: "server".into(),
                    attempt: 0,
                }),
                finished_at: 1,
                exit_code: 137,
                reason: "OOMKilled".into(),
                ..Default::default()
            }],
        };
        let text =
            "1970-01-01T00:00:01Z  container stopped  c1  default/web  server  exit 137 OOMKilled";
        assert_eq!(line(&event), text);
        event.container_id = "p1".into();
        assert_eq!(
            line(&event),
            "1970-01-01T00:00:01Z  pod       stopped  p1  default/web"
        );
    }
}
