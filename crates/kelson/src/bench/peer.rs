//! A runtime under measurement.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use kelson_client::{Client, Endpoint};
use kelson_cri::v1::{
    ImageSpec, ListPodSandboxRequest, PodSandboxFilter, PullImageRequest, RemovePodSandboxRequest,
    StopPodSandboxRequest, VersionRequest,
};

/// The label whose value is the id of a run.
pub(super) const LABEL: &str = "kelson.bench";

/// A runtime and the connection to it.
#[derive(Debug)]
pub(super) struct Peer {
    /// What it calls itself.
    pub(super) kind: String,
    /// The same, made unique in this run.
    pub(super) name: String,
    pub(super) version: String,
    pub(super) client: Client,
    /// The process that listens on the socket.
    pub(super) daemon: u32,
}

impl Peer {
    pub(super) async fn connect(endpoint: &str) -> Result<Self> {
        let endpoint = Endpoint::parse(endpoint, "--endpoint")?;
        let client = Client::connect(&endpoint).await?;
        let version = client.version(VersionRequest::default()).await?;
        let daemon = listener(&endpoint).with_context(|| format!("find who serves {endpoint}"))?;
        Ok(Self {
            name: version.runtime_name.clone(),
            kind: version.runtime_name,
            version: version.runtime_version,
            client,
            daemon,
        })
    }

    /// Pulls an image, whether it is there or not.
    pub(super) async fn pull(&self, image: &str) -> Result<()> {
        let image = Some(ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        });
        self.client
            .pull_image(PullImageRequest {
                image,
                ..Default::default()
            })
            .await?;
        Ok(())
    }

    /// Ids of the pods of a run.
    pub(super) async fn pods_of(&self, run: &str) -> Result<Vec<String>> {
        let filter = PodSandboxFilter {
            label_selector: BTreeMap::from([(LABEL.to_owned(), run.to_owned())]),
            ..Default::default()
        };
        let request = ListPodSandboxRequest {
            filter: Some(filter),
        };
        let pods = self.client.list_pod_sandbox(request).await?.items;
        Ok(pods.into_iter().map(|pod| pod.id).collect())
    }

    /// Removes a pod with its containers, by force.
    pub(super) async fn remove_pod(&self, pod: &str) -> Result<()> {
        let id = || pod.to_owned();
        self.client
            .stop_pod_sandbox(StopPodSandboxRequest {
                pod_sandbox_id: id(),
            })
            .await?;
        self.client
            .remove_pod_sandbox(RemovePodSandboxRequest {
                pod_sandbox_id: id(),
            })
            .await?;
        Ok(())
    }
}

fn listener(endpoint: &Endpoint) -> Result<u32> {
    let stream = UnixStream::connect(endpoint.path())?;
    let credentials = rustix::net::sockopt::socket_peercred(&stream)?;
    Ok(credentials.pid.as_raw_nonzero().get().unsigned_abs())
}
