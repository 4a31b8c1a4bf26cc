//! Pods of one container, up and down one after another, each call timed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kelson_cgroup::Cgroup;
use kelson_cri::v1::security_profile::ProfileType;
use kelson_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, RemoveContainerRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, SecurityProfile, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
use kelson_pod::config::{DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS};

use super::Bench;
use super::peer::{LABEL, Peer};
use super::report::{Better, Report};
use super::samples::Step;

/// Which network the pods are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// Their own, with an address.
    Pod,
    /// The host's.
    Host,
}

/// A pod that is up, and its container.
#[derive(Debug, Clone)]
pub(super) struct Up {
    pub(super) pod: String,
    pub(super) container: String,
}

/// A pod that shall be: its configuration, its container's, and its cgroup.
#[derive(Debug)]
pub(super) struct Plan {
    pod: PodSandboxConfig,
    container: ContainerConfig,
    cgroup: Option<Cgroup>,
}

/// What the container of a pod does.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) command: Vec<String>,
    pub(super) mounts: Vec<Mount>,
}

impl Work {
    /// Sleeps until it is killed.
    pub(super) fn sleep() -> Self {
        Self {
            command: vec!["sleep".into(), "1000000".into()],
            mounts: Vec::new(),
        }
    }
}

pub(super) async fn run(bench: &Bench, network: Network, report: &mut Report) {
    let what = match network {
        Network::Pod => "pod network",
        Network::Host => "host network",
    };
    let steps = bench
        .rounds(what, bench.args.rounds, report, async |peer, round| {
            let name = format!("{what}-{round}").replace(' ', "-");
            up_and_down(bench, peer, network, &name).await
        })
        .await;
    for (step, peers) in steps.summaries() {
        report.row(format!("{what}: {step}"), "ms", Better::Lower, peers);
    }
}

/// One pod up and down again.
pub(super) async fn up_and_down(
    bench: &Bench,
    peer: &Peer,
    network: Network,
    name: &str,
) -> Result<Vec<Step>> {
    let plan = Plan::new(bench, peer, network, name, Work::sleep())?;
    let (up, mut times) = plan.up(peer).await?;
    times.extend(down(peer, &up).await?);
    plan.clean_up()?;
    Ok(times)
}

/// Measures steps and their sum.
struct Watch {
    begin: Instant,
    last: Instant,
    steps: Vec<Step>,
}

impl Watch {
    fn start() -> Self {
        let now = Instant::now();
        Self {
            begin: now,
            last: now,
            steps: Vec::new(),
        }
    }

    fn step(&mut self, name: &'static str) {
        let now = Instant::now();
        self.steps.push((name, now - self.last));
        self.last = now;
    }

    fn finish(mut self, sum: &'static str) -> Vec<Step> {
        let all: Duration = self.last - self.begin;
        self.steps.push((sum, all));
        self.steps
    }
}

impl Plan {
    /// Prepares what the kubelet would: the requests, and a cgroup for the pod.
    pub(super) fn new(
        bench: &Bench,
        peer: &Peer,
        network: Network,
        name: &str,
        work: Work,
    ) -> Result<Self> {
        let cgroup = bench.pod_cgroup(peer, name)?;
        if let Some(cgroup) = &cgroup {
            cgroup.create().context("make the cgroup of a pod")?;
        }
        let mut pod = pod_config(bench, peer, network, name);
        if let (Some(cgroup), Some(linux)) = (&cgroup, &mut pod.linux) {
            cgroup.path().clone_into(&mut linux.cgroup_parent);
        }
        Ok(Self {
            pod,
            container: container_config(bench, network, work),
            cgroup,
        })
    }

    /// Brings the pod up.
    pub(super) async fn up(&self, peer: &Peer) -> Result<(Up, Vec<Step>)> {
        let client = &peer.client;
        let run = RunPodSandboxRequest {
            config: Some(self.pod.clone()),
            runtime_handler: String::new(),
        };
        let mut create = CreateContainerRequest {
            pod_sandbox_id: String::new(),
            config: Some(self.container.clone()),
            sandbox_config: Some(self.pod.clone()),
        };
        let mut watch = Watch::start();
        let pod = client.run_pod_sandbox(run).await?.pod_sandbox_id;
        watch.step("RunPodSandbox");
        create.pod_sandbox_id.clone_from(&pod);
        let container = client.create_container(create).await?.container_id;
        watch.step("CreateContainer");
        client
            .start_container(StartContainerRequest {
                container_id: container.clone(),
            })
            .await?;
        watch.step("StartContainer");
        Ok((Up { pod, container }, watch.finish("pod up")))
    }

    /// Removes the cgroup, which the runtime has left empty.
    pub(super) fn clean_up(&self) -> Result<()> {
        let removed = self.cgroup.as_ref().map(Cgroup::remove).transpose();
        removed.context("remove the cgroup of a pod").map(drop)
    }
}

/// Takes a pod down and removes it.
pub(super) async fn down(peer: &Peer, up: &Up) -> Result<Vec<Step>> {
    let client = &peer.client;
    let (pod, container) = (|| up.pod.clone(), || up.container.clone());
    let mut watch = Watch::start();
    client
        .stop_container(StopContainerRequest {
            container_id: container(),
            timeout: 0,
        })
        .await?;
    watch.step("StopContainer");
    client
        .remove_container(RemoveContainerRequest {
            container_id: container(),
        })
        .await?;
    watch.step("RemoveContainer");
    client
        .stop_pod_sandbox(StopPodSandboxRequest {
            pod_sandbox_id: pod(),
        })
        .await?;
    watch.step("StopPodSandbox");
    client
        .remove_pod_sandbox(RemovePodSandboxRequest {
            pod_sandbox_id: pod(),
        })
        .await?;
    watch.step("RemovePodSandbox");
    Ok(watch.finish("pod down"))
}

fn namespaces(network: Network) -> NamespaceOption {
    let network = match network {
        Network::Pod => NamespaceMode::Pod,
        Network::Host => NamespaceMode::Node,
    };
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    }
}

fn seccomp() -> SecurityProfile {
    SecurityProfile {
        profile_type: ProfileType::RuntimeDefault.into(),
        ..Default::default()
    }
}

fn pod_config(bench: &Bench, peer: &Peer, network: Network, name: &str) -> PodSandboxConfig {
    // The same runtime may be measured twice in one run.
    let uid = format!("{}-{}-{name}", bench.id, peer.name);
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            namespace: "kelson-bench".into(),
            uid: uid.clone(),
            attempt: 0,
        }),
        hostname: if network == Network::Pod {
            name.to_owned()
        } else {
            String::new()
        },
        log_directory: bench
            .directory
            .join(&peer.name)
            .join(uid)
            .display()
            .to_string(),
        labels: BTreeMap::from([(LABEL.to_owned(), bench.id.clone())]),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(network)),
                seccomp: Some(seccomp()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container_config(bench: &Bench, network: Network, work: Work) -> ContainerConfig {
    let paths = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "bench".into(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: bench.pod_image(),
            ..Default::default()
        }),
        command: work.command,
        mounts: work.mounts,
        log_path: "bench.log".into(),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces(network)),
                masked_paths: paths(DEFAULT_MASKED_PATHS),
                readonly_paths: paths(DEFAULT_READONLY_PATHS),
                seccomp: Some(seccomp()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}
