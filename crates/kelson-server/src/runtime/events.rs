//! `GetContainerEvents`: every event with the pod's status and its containers' at that time.
//!
//! A client that is too slow to keep up is told by the end of its stream: it must list anew.

use kelson_cri::v1;
use kelson_pod::{Event, EventKind, Received};
use tonic::Status;
use tonic::codegen::BoxStream;

use super::sandbox_status::{containers, status as pod_status};
use crate::Server;

impl Server {
    pub(super) fn events(&self) -> BoxStream<v1::ContainerEventResponse> {
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        let mut events = self.services.pods.events();
        tokio::spawn(async move {
            loop {
                let received = tokio::select! {
                    received = events.recv() => received,
                    () = sender.closed() => return,
                };
                let answer = match received {
                    None => return,
                    Some(Received::Event(event)) => Ok(response(&event)),
                    Some(Received::Missed(count)) => Err(Status::resource_exhausted(format!(
                        "{count} events were lost because the client was too slow; list pods and containers, and subscribe again"
                    ))),
                };
                let lost = answer.is_err();
                if sender.send(answer).await.is_err() || lost {
                    return;
                }
            }
        });
        Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))
    }
}

fn response(event: &Event) -> v1::ContainerEventResponse {
    let id = match &event.container {
        Some(container) => container.to_string(),
        None => event.pod.to_string(),
    };
    let kind = match event.kind {
        EventKind::Created => v1::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => v1::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    v1::ContainerEventResponse {
        container_id: id,
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(pod_status(&event.status)),
        containers_statuses: containers(&event.status),
    }
}
