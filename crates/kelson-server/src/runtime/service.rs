//! The table of the runtime service: which verb goes where.

use kelson_cri::v1;
use kelson_cri::v1::runtime_service_server::RuntimeService;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::Server;

/// Writes the implementation: verbs with the subject of their span and their handler, and streaming
/// verbs with theirs.
macro_rules! runtime_service {
    (
        verbs { $($method:ident($name:literal, $request:ident: $in:ident $(, $subject:expr)?) -> $out:ident = |$server:ident| $handler:expr;)* }
        streams { $($stream:ident($stream_name:literal, $stream_request:ident: $stream_in:ident) -> $stream_out:ident = |$stream_server:ident| $stream_handler:expr;)* }
    ) => {
        #[tonic::async_trait]
        impl RuntimeService for Server {
            $(
                async fn $method(&self, request: Request<v1::$in>) -> Result<Response<v1::$out>, Status> {
                    let $request = request.into_inner();
                    let subject = String::new() $(+ $subject)?;
                    let $server = self;
                    self.instrument.verb($name, &subject, async { $handler }).await
                }
            )*

            $(
                async fn $stream(&self, request: Request<v1::$stream_in>) -> Result<Response<BoxStream<v1::$stream_out>>, Status> {
                    let $stream_request = request.into_inner();
                    let $stream_server = self;
                    self.instrument.verb($stream_name, "", async { Ok($stream_handler) }).await
                }
            )*
        }
    };
}

runtime_service! {
    verbs {
        version("Version", _request: VersionRequest) -> VersionResponse = |_server| Ok(Self::about());
        status("Status", request: StatusRequest) -> StatusResponse = |server| server.conditions(&request).await;
        runtime_config("RuntimeConfig", _request: RuntimeConfigRequest) -> RuntimeConfigResponse = |server| Ok(server.driver());
        run_pod_sandbox("RunPodSandbox", request: RunPodSandboxRequest, &pod_name(&request)) -> RunPodSandboxResponse = |server| server.sandbox_run(request).await;
        stop_pod_sandbox("StopPodSandbox", request: StopPodSandboxRequest, &request.pod_sandbox_id) -> StopPodSandboxResponse = |server| server.sandbox_stop(request).await;
        remove_pod_sandbox("RemovePodSandbox", request: RemovePodSandboxRequest, &request.pod_sandbox_id) -> RemovePodSandboxResponse = |server| server.sandbox_remove(request).await;
        pod_sandbox_status("PodSandboxStatus", request: PodSandboxStatusRequest, &request.pod_sandbox_id) -> PodSandboxStatusResponse = |server| server.sandbox_lookup(&request);
        list_pod_sandbox("ListPodSandbox", request: ListPodSandboxRequest) -> ListPodSandboxResponse = |server| server.sandbox_list(request);
        create_container("CreateContainer", request: CreateContainerRequest, &request.pod_sandbox_id) -> CreateContainerResponse = |server| server.container_create(request).await;
        start_container("StartContainer", request: StartContainerRequest, &request.container_id) -> StartContainerResponse = |server| server.container_start(&request).await;
        stop_container("StopContainer", request: StopContainerRequest, &request.container_id) -> StopContainerResponse = |server| server.container_stop(&request).await;
        remove_container("RemoveContainer", request: RemoveContainerRequest, &request.container_id) -> RemoveContainerResponse = |server| server.container_remove(&request).await;
        list_containers("ListContainers", request: ListContainersRequest) -> ListContainersResponse = |server| server.container_list(request);
        container_status("ContainerStatus", request: ContainerStatusRequest, &request.container_id) -> ContainerStatusResponse = |server| server.container_lookup(&request);
        reopen_container_log("ReopenContainerLog", request: ReopenContainerLogRequest, &request.container_id) -> ReopenContainerLogResponse = |server| server.container_log_reopen(&request).await;
        checkpoint_container("CheckpointContainer", request: CheckpointContainerRequest, &request.container_id) -> CheckpointContainerResponse = |server| server.container_checkpoint(request).await;
        exec_sync("ExecSync", request: ExecSyncRequest, &request.container_id) -> ExecSyncResponse = |server| server.container_exec_sync(request).await;
        exec("Exec", request: ExecRequest, &request.container_id) -> ExecResponse = |server| server.container_exec(request);
        attach("Attach", request: AttachRequest, &request.container_id) -> AttachResponse = |server| server.container_attach(&request);
        port_forward("PortForward", request: PortForwardRequest, &request.pod_sandbox_id) -> PortForwardResponse = |server| server.sandbox_port_forward(&request);
        container_stats("ContainerStats", request: ContainerStatsRequest, &request.container_id) -> ContainerStatsResponse = |server| server.container_usage(&request).await;
        list_container_stats("ListContainerStats", request: ListContainerStatsRequest) -> ListContainerStatsResponse = |server| server.container_usage_list(request).await;
        pod_sandbox_stats("PodSandboxStats", request: PodSandboxStatsRequest, &request.pod_sandbox_id) -> PodSandboxStatsResponse = |server| server.sandbox_usage(&request).await;
        list_pod_sandbox_stats("ListPodSandboxStats", request: ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse = |server| server.sandbox_usage_list(request).await;
        update_runtime_config("UpdateRuntimeConfig", request: UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse = |server| server.runtime_update(request).await;
        update_container_resources("UpdateContainerResources", request: UpdateContainerResourcesRequest, &request.container_id) -> UpdateContainerResourcesResponse = |server| server.container_update(request).await;
        update_pod_sandbox_resources("UpdatePodSandboxResources", request: UpdatePodSandboxResourcesRequest, &request.pod_sandbox_id) -> UpdatePodSandboxResourcesResponse = |server| server.sandbox_update(request).await;
        list_metric_descriptors("ListMetricDescriptors", _request: ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse = |_server| Ok(Self::metric_descriptors());
        list_pod_sandbox_metrics("ListPodSandboxMetrics", _request: ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse = |server| Ok(server.metrics_list().await);
    }
    streams {
        get_container_events("GetContainerEvents", _request: GetEventsRequest) -> ContainerEventResponse = |server| server.events();
        stream_pod_sandboxes("StreamPodSandboxes", request: StreamPodSandboxesRequest) -> StreamPodSandboxesResponse = |server| server.sandbox_stream(request);
        stream_containers("StreamContainers", request: StreamContainersRequest) -> StreamContainersResponse = |server| server.container_stream(request);
        stream_container_stats("StreamContainerStats", request: StreamContainerStatsRequest) -> StreamContainerStatsResponse = |server| server.container_usage_stream(request);
        stream_pod_sandbox_stats("StreamPodSandboxStats", request: StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse = |server| server.sandbox_usage_stream(request);
        stream_pod_sandbox_metrics("StreamPodSandboxMetrics", _request: StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse = |server| server.metrics_stream();
    }
}

/// Namespace and name of the pod that a request is about.
fn pod_name(request: &v1::RunPodSandboxRequest) -> String {
    let metadata = request
        .config
        .as_ref()
        .and_then(|config| config.metadata.as_ref());
    metadata
        .map(|names| format!("{}/{}", names.namespace, names.name))
        .unwrap_or_default()
}
