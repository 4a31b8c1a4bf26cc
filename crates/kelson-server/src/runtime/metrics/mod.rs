//! `ListMetricDescriptors`, `ListPodSandboxMetrics` and `StreamPodSandboxMetrics`: what cAdvisor tells of
//! pods and containers, so that the kubelet need not run it.
//!
//! Values are whole numbers by the CRI: times are in full seconds, so short ones read as 0.

mod families;

use std::sync::Arc;

use kelson_cri::v1;
use kelson_pod::{ContainerMetrics, Pod, PodId, PodMetrics};
use tonic::codegen::BoxStream;

use crate::Server;
use crate::stream::read_batches;
use families::{CONTAINER, Disk, Labels, NETWORK, Samples, Source};

/// The labels that every metric has, before its own.
const LABELS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

impl Server {
    pub(super) fn metric_descriptors() -> v1::ListMetricDescriptorsResponse {
        let of_pods = NETWORK.iter().map(families::Family::about);
        let of_containers = CONTAINER.iter().map(families::Family::about);
        v1::ListMetricDescriptorsResponse {
            descriptors: of_pods.chain(of_containers).map(descriptor).collect(),
        }
    }

    pub(super) async fn metrics_list(&self) -> v1::ListPodSandboxMetricsResponse {
        let metrics = self.services.pods.metrics(&self.ready_pods()).await;
        let disk = Disk::of(&self.services.about.root);
        v1::ListPodSandboxMetricsResponse {
            pod_metrics: metrics
                .into_iter()
                .map(|pod| pod_metrics(pod, disk))
                .collect(),
        }
    }

    pub(super) fn metrics_stream(&self) -> BoxStream<v1::StreamPodSandboxMetricsResponse> {
        let services = Arc::clone(&self.services);
        let read = move |ids: Vec<PodId>| {
            let services = Arc::clone(&services);
            async move {
                let metrics = services.pods.metrics(&ids).await;
                let disk = Disk::of(&services.about.root);
                metrics
                    .into_iter()
                    .map(|pod| pod_metrics(pod, disk))
                    .collect()
            }
        };
        read_batches(self.ready_pods(), read, |pod_sandbox_metrics| {
            v1::StreamPodSandboxMetricsResponse {
                pod_sandbox_metrics,
            }
        })
    }

    fn ready_pods(&self) -> Vec<PodId> {
        let snapshot = self.snapshot();
        let ready = snapshot.pods().filter(|pod| pod.is_ready());
        ready.map(|pod| pod.id).collect()
    }
}

fn descriptor(about: (&str, &str, Labels)) -> v1::MetricDescriptor {
    let (name, help, own) = about;
    v1::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS
            .iter()
            .chain(own)
            .map(|&key| key.to_owned())
            .collect(),
    }
}

fn pod_metrics(pod: PodMetrics, disk: Disk) -> v1::PodSandboxMetrics {
    let names = &pod.pod.config.metadata;
    let labels = [&names.name, &names.namespace, "", pod.pod.id.as_str(), ""];
    let mut samples = Samples::new(pod.at, labels);
    for family in NETWORK {
        for interface in &pod.network {
            family.sample(interface, &mut samples);
        }
    }
    let containers = pod.containers.into_iter();
    v1::PodSandboxMetrics {
        pod_sandbox_id: pod.pod.id.to_string(),
        metrics: samples.done(),
        container_metrics: containers
            .map(|one| container_metrics(&pod.pod, one, disk))
            .collect(),
    }
}

fn container_metrics(pod: &Pod, metrics: ContainerMetrics, disk: Disk) -> v1::ContainerMetrics {
    let names = &pod.config.metadata;
    let container = Arc::clone(&metrics.container);
    let config = &container.config;
    let image = if config.image.user_specified_image.is_empty() {
        &config.image.image
    } else {
        &config.image.user_specified_image
    };
    let labels = [
        &names.name,
        &names.namespace,
        &config.name,
        container.id.as_str(),
        image,
    ];
    let mut samples = Samples::new(metrics.at, labels);
    let source = Source { metrics, disk };
    for family in CONTAINER {
        family.sample(&source, &mut samples);
    }
    v1::ContainerMetrics {
        container_id: container.id.to_string(),
        metrics: samples.done(),
    }
}
