//! `kelson stop`: stops containers, or all containers of pods and then the pods.

use anyhow::Result;
use kelson_client::Client;
use kelson_cri::v1::{ContainerState, StopContainerRequest, StopPodSandboxRequest};

use super::each;
use super::target::{Inventory, Target};
use crate::ui::Io;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds between the stop signal and killing
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u32,
    /// Pods and containers: ids, beginnings of ids, or names
    #[arg(required = true, value_name = "POD|CONTAINER")]
    targets: Vec<String>,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let inventory = Inventory::take(client).await?;
    each(&args.targets, io, async |wanted| {
        match inventory.find(wanted)? {
            Target::Container(container) => {
                stop_container(client, container.id, args.timeout.into()).await
            }
            Target::Pod(pod) => stop_pod(client, &inventory, &pod.id, args.timeout.into()).await,
        }
    })
    .await
}

async fn stop_container(client: &Client, container_id: String, timeout: i64) -> Result<()> {
    client
        .stop_container(StopContainerRequest {
            container_id,
            timeout,
        })
        .await?;
    Ok(())
}

/// Gives the containers their grace period, all at the same time, and then stops the pod, which has none.
pub(crate) async fn stop_pod(
    client: &Client,
    inventory: &Inventory,
    pod: &str,
    timeout: i64,
) -> Result<()> {
    let mut stopping = tokio::task::JoinSet::new();
    let running = inventory
        .containers_of(pod)
        .filter(|container| container.state() == ContainerState::ContainerRunning);
    for container in running {
        let (client, id) = (client.clone(), container.id.clone());
        stopping.spawn(async move { stop_container(&client, id, timeout).await });
    }
    // StopPodSandbox kills what is left, so it is called whatever the containers' stops say.
    stopping.join_all().await;
    client
        .stop_pod_sandbox(StopPodSandboxRequest {
            pod_sandbox_id: pod.to_owned(),
        })
        .await?;
    Ok(())
}
