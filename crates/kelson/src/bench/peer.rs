//! A runtime under measurement.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use kelson_client::{Client, Endpoint};
use kelson_cri::v1::{
    CgroupDriver, ImageSpec, ListPodSandboxRequest, PodSandboxFilter, PullImageRequest,
    RemoveImageRequest, RemovePodSandboxRequest, RuntimeConfigRequest, StopPodSandboxRequest,
    VersionRequest,
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
    /// Whether it takes parent cgroups as paths.
    pub(super) cgroupfs: bool,
    /// How to start its daemon, for `sh -c`.
    pub(super) start_command: Option<String>,
    daemon: AtomicU32,
}

impl Peer {
    pub(super) async fn connect(endpoint: &str) -> Result<Self> {
        let endpoint = Endpoint::parse(endpoint, "--endpoint")?;
        let client = Client::connect(&endpoint).await?;
        let version = client.version(VersionRequest::default()).await?;
        let daemon = listener(&endpoint).with_context(|| format!("find who serves {endpoint}"))?;
        // A runtime without this call is left to choose its cgroups.
        let config = client.runtime_config(RuntimeConfigRequest::default()).await;
        let driver = config.ok().and_then(|config| config.linux);
        let cgroupfs = driver.is_some_and(|linux| linux.cgroup_driver() == CgroupDriver::Cgroupfs);
        Ok(Self {
            name: version.runtime_name.clone(),
            kind: version.runtime_name,
            version: version.runtime_version,
            client,
            cgroupfs,
            start_command: None,
            daemon: daemon.into(),
        })
    }

    /// The process that listens on the socket.
    pub(super) fn daemon(&self) -> u32 {
        self.daemon.load(Ordering::Relaxed)
    }

    /// Looks again who listens on the socket.
    pub(super) fn find_daemon(&self) -> Result<()> {
        let daemon = listener(self.client.endpoint()).context("find the new daemon")?;
        self.daemon.store(daemon, Ordering::Relaxed);
        Ok(())
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

    /// Removes an image; that it is not there is fine.
    pub(super) async fn remove_image(&self, image: &str) -> Result<()> {
        let image = Some(ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        });
        self.client
            .remove_image(RemoveImageRequest { image })
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
