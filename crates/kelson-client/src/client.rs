//! One connection and a method for every call that Kelson's commands make.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use kelson_cri::MAX_MESSAGE_SIZE;
use kelson_cri::v1::image_service_client::ImageServiceClient;
use kelson_cri::v1::runtime_service_client::RuntimeServiceClient;
use kelson_cri::v1::*;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint as Target};

use crate::{Endpoint, Error};

/// How long the socket may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// For calls that only read state.
const READ: Duration = Duration::from_secs(30);
/// For calls that change something; the kubelet's own default is two minutes.
const CHANGE: Duration = Duration::from_secs(240);
/// What a call with a time of its own may take beyond that time.
const MARGIN: Duration = Duration::from_secs(30);

/// A connection to a runtime. Clones share it; calls may run side by side.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Arc<Endpoint>,
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
}

/// Methods that send a request and wait for the one answer, each with its deadline.
macro_rules! calls {
    ($($(#[$doc:meta])* $service:ident.$method:ident($rpc:literal, $request:ty) -> $response:ty, $deadline:expr;)*) => {
        $(
            $(#[$doc])*
            pub async fn $method(&self, request: $request) -> Result<$response, Error> {
                let deadline = { $deadline };
                self.within($rpc, deadline(&request), self.$service.clone().$method(request)).await
            }
        )*
    };
}

/// Methods that ask for a list in parts and put it together, all within the deadline of a read.
macro_rules! streams {
    ($($(#[$doc:meta])* $service:ident.$method:ident($rpc:literal, $request:ident, $filter:ty) -> $field:ident: $item:ty;)*) => {
        $(
            $(#[$doc])*
            pub async fn $method(&self, filter: Option<$filter>) -> Result<Vec<$item>, Error> {
                let mut service = self.$service.clone();
                let all = async {
                    let mut parts = service.$method($request { filter }).await?.into_inner();
                    let mut all = Vec::new();
                    while let Some(part) = parts.message().await? {
                        all.extend(part.$field);
                    }
                    Ok(tonic::Response::new(all))
                };
                self.within($rpc, Some(READ), all).await
            }
        )*
    };
}

impl Client {
    /// Connects to the socket; fails at once where nobody listens there.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, Error> {
        let path = endpoint.path().to_owned();
        // tonic hides why a connection failed behind its own errors; a first one by hand says it plainly.
        let first = tokio::time::timeout(CONNECT, UnixStream::connect(&path)).await;
        first
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|source| Error::Connect {
                endpoint: endpoint.clone(),
                source,
            })?;
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // Some servers refuse an authority that is no host name, so never the path of the socket.
        let channel =
            Target::from_static("http://localhost").connect_with_connector_lazy(connector);
        Ok(Self {
            endpoint: Arc::new(endpoint.clone()),
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_SIZE * 4)
                .max_encoding_message_size(MAX_MESSAGE_SIZE),
            image: ImageServiceClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_SIZE * 4)
                .max_encoding_message_size(MAX_MESSAGE_SIZE),
        })
    }

    /// Where this client is connected to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    calls! {
        /// Name and version of the runtime.
        runtime.version("Version", VersionRequest) -> VersionResponse, read;
        /// Conditions, handlers and features of the runtime.
        runtime.status("Status", StatusRequest) -> StatusResponse, read;
        /// Configuration that the kubelet follows.
        runtime.runtime_config("RuntimeConfig", RuntimeConfigRequest) -> RuntimeConfigResponse, read;
        /// Makes a pod.
        runtime.run_pod_sandbox("RunPodSandbox", RunPodSandboxRequest) -> RunPodSandboxResponse, change;
        /// Stops a pod.
        runtime.stop_pod_sandbox("StopPodSandbox", StopPodSandboxRequest) -> StopPodSandboxResponse, change;
        /// Removes a pod.
        runtime.remove_pod_sandbox("RemovePodSandbox", RemovePodSandboxRequest) -> RemovePodSandboxResponse, change;
        /// One pod.
        runtime.pod_sandbox_status("PodSandboxStatus", PodSandboxStatusRequest) -> PodSandboxStatusResponse, read;
        /// Many pods.
        runtime.list_pod_sandbox("ListPodSandbox", ListPodSandboxRequest) -> ListPodSandboxResponse, read;
        /// Prepares a container.
        runtime.create_container("CreateContainer", CreateContainerRequest) -> CreateContainerResponse, change;
        /// Starts a container.
        runtime.start_container("StartContainer", StartContainerRequest) -> StartContainerResponse, change;
        /// Stops a container; the deadline is later than its grace period.
        runtime.stop_container("StopContainer", StopContainerRequest) -> StopContainerResponse,
            |request: &StopContainerRequest| Some(CHANGE + seconds(request.timeout));
        /// Removes a container.
        runtime.remove_container("RemoveContainer", RemoveContainerRequest) -> RemoveContainerResponse, change;
        /// Many containers.
        runtime.list_containers("ListContainers", ListContainersRequest) -> ListContainersResponse, read;
        /// One container.
        runtime.container_status("ContainerStatus", ContainerStatusRequest) -> ContainerStatusResponse, read;
        /// Opens a container's log anew.
        runtime.reopen_container_log("ReopenContainerLog", ReopenContainerLogRequest) -> ReopenContainerLogResponse, change;
        /// Runs a command in a container; without a timeout in the request it may take for ever.
        runtime.exec_sync("ExecSync", ExecSyncRequest) -> ExecSyncResponse,
            |request: &ExecSyncRequest| (request.timeout > 0).then(|| seconds(request.timeout) + MARGIN);
        /// Writes an archive of a running container; without a timeout the runtime has its own.
        runtime.checkpoint_container("CheckpointContainer", CheckpointContainerRequest) -> CheckpointContainerResponse,
            |request: &CheckpointContainerRequest| Some(CHANGE + seconds(request.timeout));
        /// An address for running a command with its input and output.
        runtime.exec("Exec", ExecRequest) -> ExecResponse, change;
        /// An address for attaching to a container.
        runtime.attach("Attach", AttachRequest) -> AttachResponse, change;
        /// An address for connecting to ports of a pod.
        runtime.port_forward("PortForward", PortForwardRequest) -> PortForwardResponse, change;
        /// Resource use of one container.
        runtime.container_stats("ContainerStats", ContainerStatsRequest) -> ContainerStatsResponse, read;
        /// Resource use of many containers.
        runtime.list_container_stats("ListContainerStats", ListContainerStatsRequest) -> ListContainerStatsResponse, read;
        /// Resource use of one pod.
        runtime.pod_sandbox_stats("PodSandboxStats", PodSandboxStatsRequest) -> PodSandboxStatsResponse, read;
        /// Resource use of many pods.
        runtime.list_pod_sandbox_stats("ListPodSandboxStats", ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse, read;
        /// Names, meanings and labels of all metrics.
        runtime.list_metric_descriptors("ListMetricDescriptors", ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse, read;
        /// Metrics of all pods.
        runtime.list_pod_sandbox_metrics("ListPodSandboxMetrics", ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse, read;
        /// Changes the resources of a container.
        runtime.update_container_resources("UpdateContainerResources", UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse, change;
        /// Tells what the resources of a pod are.
        runtime.update_pod_sandbox_resources("UpdatePodSandboxResources", UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse, change;
        /// Tells the address ranges of the node's pods.
        runtime.update_runtime_config("UpdateRuntimeConfig", UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse, change;
        /// Many images.
        image.list_images("ListImages", ListImagesRequest) -> ListImagesResponse, read;
        /// One image.
        image.image_status("ImageStatus", ImageStatusRequest) -> ImageStatusResponse, read;
        /// Pulls an image; only the runtime knows whether it makes progress, so there is no deadline.
        image.pull_image("PullImage", PullImageRequest) -> PullImageResponse, |_: &PullImageRequest| None;
        /// Removes an image.
        image.remove_image("RemoveImage", RemoveImageRequest) -> RemoveImageResponse, change;
        /// Disk use of images and writable layers.
        image.image_fs_info("ImageFsInfo", ImageFsInfoRequest) -> ImageFsInfoResponse, read;
    }

    streams! {
        /// Many pods, in parts: however many there are.
        runtime.stream_pod_sandboxes("StreamPodSandboxes", StreamPodSandboxesRequest, PodSandboxFilter) -> pod_sandboxes: PodSandbox;
        /// Many containers, in parts.
        runtime.stream_containers("StreamContainers", StreamContainersRequest, ContainerFilter) -> containers: Container;
        /// Resource use of many containers, in parts.
        runtime.stream_container_stats("StreamContainerStats", StreamContainerStatsRequest, ContainerStatsFilter) -> container_stats: ContainerStats;
        /// Resource use of many pods, in parts.
        runtime.stream_pod_sandbox_stats("StreamPodSandboxStats", StreamPodSandboxStatsRequest, PodSandboxStatsFilter) -> pod_sandbox_stats: PodSandboxStats;
        /// Many images, in parts.
        image.stream_images("StreamImages", StreamImagesRequest, ImageFilter) -> images: Image;
    }

    /// Metrics of all pods, in parts.
    pub async fn stream_pod_sandbox_metrics(&self) -> Result<Vec<PodSandboxMetrics>, Error> {
        let mut runtime = self.runtime.clone();
        let all = async {
            let request = StreamPodSandboxMetricsRequest {};
            let mut parts = runtime
                .stream_pod_sandbox_metrics(request)
                .await?
                .into_inner();
            let mut all = Vec::new();
            while let Some(part) = parts.message().await? {
                all.extend(part.pod_sandbox_metrics);
            }
            Ok(tonic::Response::new(all))
        };
        self.within("StreamPodSandboxMetrics", Some(READ), all)
            .await
    }

    /// What happens to containers from now on; the stream has no end of its own.
    pub async fn events(&self) -> Result<Events, Error> {
        let rpc = "GetContainerEvents";
        let mut runtime = self.runtime.clone();
        // The answer's headers may come only with the first event, so no deadline fits here.
        let call = runtime.get_container_events(GetEventsRequest {});
        let stream = self.within(rpc, None, call).await?;
        Ok(Events {
            endpoint: Arc::clone(&self.endpoint),
            stream,
        })
    }

    async fn within<T>(
        &self,
        rpc: &'static str,
        deadline: Option<Duration>,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Error> {
        let answer = match deadline {
            None => call.await,
            Some(after) => tokio::time::timeout(after, call)
                .await
                .map_err(|_| Error::Deadline { rpc, after })?,
        };
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| Error::from_status(rpc, &self.endpoint, &status))
    }
}

/// A stream of container events.
#[derive(Debug)]
pub struct Events {
    endpoint: Arc<Endpoint>,
    stream: tonic::Streaming<ContainerEventResponse>,
}

impl Events {
    /// Waits for the next event; nothing when the runtime ends the stream.
    pub async fn next(&mut self) -> Result<Option<ContainerEventResponse>, Error> {
        self.stream
            .message()
            .await
            .map_err(|status| Error::from_status("GetContainerEvents", &self.endpoint, &status))
    }
}

fn read<T>(_: &T) -> Option<Duration> {
    Some(READ)
}

fn change<T>(_: &T) -> Option<Duration> {
    Some(CHANGE)
}

/// Seconds of a request, where a negative number means none.
fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests;
