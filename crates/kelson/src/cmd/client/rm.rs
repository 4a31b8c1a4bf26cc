//! `kelson rm`: removes containers, or pods with their containers.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use kelson_client::Client;
use kelson_cri::v1::{
    ContainerState, PodSandbox, PodSandboxState, RemoveContainerRequest, RemovePodSandboxRequest,
    StopPodSandboxRequest,
};

use super::target::{Inventory, Target};
use super::{each, run};
use crate::ui::Io;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also what still runs
    #[arg(short, long)]
    force: bool,
    /// Pods and containers: ids, beginnings of ids, or names
    #[arg(required = true, value_name = "POD|CONTAINER")]
    targets: Vec<String>,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let inventory = Inventory::take(client).await?;
    each(&args.targets, io, async |wanted| {
        match inventory.find(wanted)? {
            Target::Container(container) => {
                let running = container.state() == ContainerState::ContainerRunning;
                ensure!(
                    args.force || !running,
                    "the container runs: stop it first, or use --force"
                );
                let request = RemoveContainerRequest {
                    container_id: container.id,
                };
                client.remove_container(request).await?;
                Ok(())
            }
            Target::Pod(pod) => {
                // A pod that `kelson run` has left is ready no more; one that is ready may still be used.
                let ready = pod.state() == PodSandboxState::SandboxReady;
                ensure!(
                    args.force || !ready,
                    "the pod is ready: stop it first, or use --force"
                );
                remove_pod(client, &pod).await
            }
        }
    })
    .await
}

/// Stops and removes a pod, with the log directory if `kelson run` made it.
async fn remove_pod(client: &Client, pod: &PodSandbox) -> Result<()> {
    let id = || pod.id.clone();
    client
        .stop_pod_sandbox(StopPodSandboxRequest {
            pod_sandbox_id: id(),
        })
        .await?;
    client
        .remove_pod_sandbox(RemovePodSandboxRequest {
            pod_sandbox_id: id(),
        })
        .await?;
    match (&pod.metadata, pod.labels.contains_key(run::LABEL)) {
        (Some(metadata), true) => {
            remove_logs(run::log_directory(&metadata.name, &metadata.uid).as_deref())
        }
        _ => Ok(()),
    }
}

/// Removes the log directory of a pod that `kelson run` has made; one that is gone is no error.
pub(crate) fn remove_logs(directory: Option<&Path>) -> Result<()> {
    let Some(directory) = directory else {
        return Ok(());
    };
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove the logs in {}", directory.display()))
        }
        _ => Ok(()),
    }
}
