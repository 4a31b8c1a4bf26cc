//! `kelson inspect`: all that the runtime tells about a pod, container or image.

use anyhow::{Result, bail};
use kelson_client::Client;
use kelson_cri::v1::{
    ContainerStatusRequest, ImageSpec, ImageStatusRequest, PodSandboxStatusRequest,
};
use serde_json::Value;

use super::target::{Inventory, Target};
use super::view::{self, ContainerStatusView, ImageView, Inspected, PodStatusView};
use crate::ui::{self, Format, Io};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pods, containers, images: ids, beginnings of ids, or names
    #[arg(required = true, value_name = "POD|CONTAINER|IMAGE")]
    targets: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "json")]
    output: Format,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let inventory = Inventory::take(client).await?;
    let mut results = Vec::new();
    for wanted in &args.targets {
        results.push(inspect(client, &inventory, wanted).await?);
    }
    match results.as_slice() {
        [only] => ui::structured(io.out, args.output, only)?,
        several => ui::structured(io.out, args.output, &several)?,
    }
    Ok(0)
}

async fn inspect(client: &Client, inventory: &Inventory, wanted: &str) -> Result<Value> {
    let target = match inventory.find(wanted) {
        Ok(target) => target,
        Err(error) => match image(client, wanted).await? {
            Some(image) => return Ok(image),
            None => bail!("{error}; nor is it an image: see `kelson images`"),
        },
    };
    let value = match target {
        Target::Pod(pod) => {
            let request = PodSandboxStatusRequest {
                pod_sandbox_id: pod.id,
                verbose: true,
            };
            let answer = client.pod_sandbox_status(request).await?;
            let status: PodStatusView = answer.status.unwrap_or_default().into();
            serde_json::to_value(Inspected {
                status,
                info: view::details(answer.info),
            })?
        }
        Target::Container(container) => {
            let request = ContainerStatusRequest {
                container_id: container.id,
                verbose: true,
            };
            let answer = client.container_status(request).await?;
            let status: ContainerStatusView = answer.status.unwrap_or_default().into();
            serde_json::to_value(Inspected {
                status,
                info: view::details(answer.info),
            })?
        }
    };
    Ok(value)
}

async fn image(client: &Client, wanted: &str) -> Result<Option<Value>> {
    let spec = ImageSpec {
        image: wanted.to_owned(),
        ..Default::default()
    };
    let request = ImageStatusRequest {
        image: Some(spec),
        verbose: true,
    };
    let answer = match client.image_status(request).await {
        // What is no image reference at all is no image either.
        Err(error) if error.code() == Some(kelson_client::Code::InvalidArgument) => {
            return Ok(None);
        }
        answer => answer?,
    };
    let info = view::details(answer.info);
    let found = answer.image.map(|image| Inspected {
        status: ImageView::from(image),
        info,
    });
    Ok(found.map(serde_json::to_value).transpose()?)
}
