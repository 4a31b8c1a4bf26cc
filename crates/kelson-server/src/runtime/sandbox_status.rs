//! `PodSandboxStatus`.

use kelson_cri::v1;
use kelson_pod::{Pod, PodState};

use super::container_status::status as container_status;
use super::sandbox_list::state;
use super::{info, to_map};
use crate::Server;
use crate::error::VerbError;
use crate::translate::{namespaces, pod_metadata};

impl Server {
    pub(super) fn sandbox_lookup(
        &self,
        request: &v1::PodSandboxStatusRequest,
    ) -> Result<v1::PodSandboxStatusResponse, VerbError> {
        let pod = self.pod(&request.pod_sandbox_id)?;
        Ok(v1::PodSandboxStatusResponse {
            status: Some(status(&pod)),
            info: if request.verbose {
                info(&details(&pod))
            } else {
                Default::default()
            },
            containers_statuses: containers(&pod),
            timestamp: super::usage::now(),
        })
    }
}

/// The pod's status, which events carry too.
pub(super) fn status(pod: &Pod) -> v1::PodSandboxStatus {
    let mut ips = pod.ips().iter().map(ToString::to_string);
    v1::PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: Some(pod_metadata(&pod.config.metadata)),
        state: state(pod),
        created_at: pod.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(namespaces(&pod.config.namespaces)),
            }),
        }),
        labels: to_map(&pod.config.labels),
        annotations: to_map(&pod.config.annotations),
        runtime_handler: pod.config.runtime_handler.clone(),
    }
}

/// The statuses of the pod's containers, the newest first: a kubelet that listens to events takes the
/// first one of a name for the current one.
pub(super) fn containers(pod: &Pod) -> Vec<v1::ContainerStatus> {
    let mut containers: Vec<_> = pod.containers.iter().collect();
    containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    containers
        .into_iter()
        .map(|one| container_status(one))
        .collect()
}

fn details(pod: &Pod) -> serde_json::Value {
    let (pid, reason) = match &pod.state {
        PodState::Ready { shim_pid, .. } => (*shim_pid, ""),
        PodState::NotReady { reason } => (0, reason.as_str()),
    };
    serde_json::json!({
        "pid": pid,
        "cgroup": pod.cgroup,
        "reason": reason,
        "config": *pod.config,
    })
}
