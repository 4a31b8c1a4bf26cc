//! A small real CRI server in memory, on a socket in a temporary directory, and the commands against it.
//! Its containers write a line to their log and end when they are started, unless their command is `sleep`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use clap::Parser;
use kelson_client::{Client, Endpoint};
use kelson_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use kelson_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use kelson_cri::v1::*;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::Command;
use crate::ui::Io;

const SECOND: i64 = 1_000_000_000;
/// The time of all commands in these tests.
const NOW: i64 = 1_000_000 * SECOND;

#[derive(Default)]
struct State {
    pods: Vec<PodSandbox>,
    log_directories: BTreeMap<String, String>,
    made: u32,
    containers: Vec<Container>,
    statuses: Vec<ContainerStatus>,
    images: Vec<Image>,
    cpu: u64,
}

impl State {
    /// Ids that differ at their beginning.
    fn next_id(&mut self) -> String {
        self.made += 1;
        format!("{:a<64}", format!("{:04}", self.made))
    }
}

#[derive(Default)]
struct Fake(Mutex<State>);

type Answer<T> = Result<Response<T>, Status>;

fn missing(what: &str, id: &str) -> Status {
    Status::not_found(format!("there is no {what} {id}"))
}

#[tonic::async_trait]
impl RuntimeService for Fake {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "7".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let condition = |r#type: &str, status| RuntimeCondition {
            r#type: r#type.into(),
            status,
            reason: "NoNetworkConfig".into(),
            message: "no conflist in /etc/cni/net.d".into(),
        };
        let conditions = vec![
            condition("RuntimeReady", true),
            condition("NetworkReady", false),
        ];
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info: [("config".to_owned(), r#"{"root":"/x"}"#.to_owned())].into(),
            runtime_handlers: vec![RuntimeHandler::default()],
            features: None,
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Answer<RunPodSandboxResponse> {
        let config = request.into_inner().config.unwrap();
        let mut state = self.0.lock().unwrap();
        let id = state.next_id();
        state
            .log_directories
            .insert(id.clone(), config.log_directory);
        state.pods.push(PodSandbox {
            id: id.clone(),
            metadata: config.metadata,
            created_at: NOW - 185 * SECOND,
            labels: config.labels,
            ..Default::default()
        });
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.0.lock().unwrap();
        let pod = state.pods.iter_mut().find(|pod| pod.id == id);
        pod.ok_or_else(|| missing("pod", &id))?
            .set_state(PodSandboxState::SandboxNotready);
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.0.lock().unwrap();
        state.pods.retain(|pod| pod.id != id);
        state
            .containers
            .retain(|container| container.pod_sandbox_id != id);
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let state = self.0.lock().unwrap();
        let pod = state
            .pods
            .iter()
            .find(|pod| pod.id == id)
            .ok_or_else(|| missing("pod", &id))?;
        let status = PodSandboxStatus {
            id,
            metadata: pod.metadata.clone(),
            network: Some(PodSandboxNetworkStatus {
                ip: "10.1.2.3".into(),
                additional_ips: vec![],
            }),
            ..Default::default()
        };
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(status),
            ..Default::default()
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut items = self.0.lock().unwrap().pods.clone();
        items.retain(|pod| filter.state.is_none_or(|wanted| wanted.state == pod.state));
        items.retain(|pod| {
            filter
                .label_selector
                .iter()
                .all(|(k, v)| pod.labels.get(k) == Some(v))
        });
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap();
        let mut state = self.0.lock().unwrap();
        let id = state.next_id();
        let directory = Path::new(&state.log_directories[&request.pod_sandbox_id]);
        let log_path = directory.join(&config.log_path).display().to_string();
        state.statuses.push(ContainerStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            log_path,
            message: config.args.join(" "),
            ..Default::default()
        });
        state.containers.push(Container {
            id: id.clone(),
            pod_sandbox_id: request.pod_sandbox_id,
            metadata: config.metadata,
            image: config.image,
            created_at: NOW - 60 * SECOND,
            ..Default::default()
        });
        Ok(Response::new(CreateContainerResponse { container_id: id }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let id = request.into_inner().container_id;
        let mut state = self.0.lock().unwrap();
        let status = state
            .statuses
            .iter_mut()
            .find(|status| status.id == id)
            .unwrap();
        if status.message == "missing" {
            return Err(Status::unknown(
                "the program \"missing\" is not in the image",
            ));
        }
        let now = if status.message == "sleep" {
            ContainerState::ContainerRunning
        } else {
            let text = "2026-11-20T10:00:00Z stdout P hel\n2026-11-20T10:00:00Z stdout F lo\n\
                        2026-11-20T10:00:01Z stderr F bad\n";
            fs::write(&status.log_path, text).unwrap();
            status.exit_code = 3;
            status.finished_at = NOW;
            ContainerState::ContainerExited
        };
        status.set_state(now);
        let container = state
            .containers
            .iter_mut()
            .find(|container| container.id == id);
        container.unwrap().set_state(now);
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Answer<StopContainerResponse> {
        let id = request.into_inner().container_id;
        let mut state = self.0.lock().unwrap();
        let container = state
            .containers
            .iter_mut()
            .find(|container| container.id == id);
        container
            .unwrap()
            .set_state(ContainerState::ContainerExited);
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.0
            .lock()
            .unwrap()
            .containers
            .retain(|container| container.id != id);
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut containers = self.0.lock().unwrap().containers.clone();
        containers.retain(|c| filter.state.is_none_or(|wanted| wanted.state == c.state));
        let pod = filter.pod_sandbox_id;
        containers.retain(|c| pod.is_empty() || c.pod_sandbox_id == pod);
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let state = self.0.lock().unwrap();
        let status = state
            .statuses
            .iter()
            .find(|status| status.id == id)
            .cloned();
        let status = Some(status.ok_or_else(|| missing("container", &id))?);
        let info = [("pid".to_owned(), "17".to_owned())].into();
        Ok(Response::new(ContainerStatusResponse { status, info }))
    }

    async fn list_container_stats(
        &self,
        _: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let mut state = self.0.lock().unwrap();
        state.cpu += 1;
        let (used, timestamp) = (state.cpu * 500, state.cpu as i64 * 1000);
        let number = |value| Some(UInt64Value { value });
        let stats = state.containers.iter().map(|container| ContainerStats {
            attributes: Some(ContainerAttributes {
                id: container.id.clone(),
                metadata: container.metadata.clone(),
                ..Default::default()
            }),
            cpu: Some(CpuUsage {
                timestamp,
                usage_core_nano_seconds: number(used),
                ..Default::default()
            }),
            memory: Some(MemoryUsage {
                working_set_bytes: number(3 << 20),
                ..Default::default()
            }),
            ..Default::default()
        });
        Ok(Response::new(ListContainerStatsResponse {
            stats: stats.collect(),
        }))
    }
}

#[tonic::async_trait]
impl ImageService for Fake {
    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let images = self.0.lock().unwrap().images.clone();
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Answer<ImageStatusResponse> {
        let wanted = request.into_inner().image.unwrap().image;
        let state = self.0.lock().unwrap();
        let image = state
            .images
            .iter()
            .find(|image| image.repo_tags.contains(&wanted))
            .cloned();
        Ok(Response::new(ImageStatusResponse {
            image,
            ..Default::default()
        }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let wanted = request.into_inner().image.unwrap().image;
        if wanted.contains("absent") {
            return Err(Status::not_found(format!(
                "{wanted}: the registry has no such image"
            )));
        }
        let id = format!("sha256:{}", "1f".repeat(32));
        self.0.lock().unwrap().images.push(Image {
            id: id.clone(),
            repo_tags: vec![wanted],
            size: 4_261_550,
            ..Default::default()
        });
        Ok(Response::new(PullImageResponse { image_ref: id }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Answer<RemoveImageResponse> {
        let wanted = request.into_inner().image.unwrap().image;
        self.0
            .lock()
            .unwrap()
            .images
            .retain(|image| !image.repo_tags.contains(&wanted));
        Ok(Response::new(RemoveImageResponse {}))
    }
}

struct Served {
    client: Client,
    directory: tempfile::TempDir,
}

async fn serve() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cri.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
    let fake = std::sync::Arc::new(Fake::default());
    let server = tonic::transport::Server::builder()
        .add_service(RuntimeServiceServer::from_arc(fake.clone()))
        .add_service(ImageServiceServer::from_arc(fake));
    tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
    let endpoint = Endpoint::parse(path.to_str().unwrap(), "test").unwrap();
    Served {
        client: Client::connect(&endpoint).await.unwrap(),
        directory,
    }
}

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

impl Served {
    /// Runs a command line; returns exit code, standard output and standard error.
    async fn kelson(&self, line: &str) -> (u8, String, String) {
        let line = line.replace("LOGS", self.directory.path().to_str().unwrap());
        let words = ["kelson"].into_iter().chain(line.split_whitespace());
        let command = Cli::try_parse_from(words).unwrap().command;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut io = Io {
            out: &mut out,
            err: &mut err,
            watched: false,
            now: || NOW,
        };
        let code = match super::execute(&self.client, command, &mut io).await {
            Ok(code) => code,
            Err(error) => {
                super::report(&error, io.err);
                1
            }
        };
        (
            code,
            String::from_utf8(out).unwrap(),
            String::from_utf8(err).unwrap(),
        )
    }
}

#[tokio::test]
async fn images_are_pulled_listed_and_removed() {
    let served = serve().await;
    let (code, out, err) = served.kelson("pull r.io/a:1 r.io/absent:1").await;
    assert_eq!((code, out.as_str()), (1, "r.io/a:1\n"));
    assert!(
        err.contains("pulled r.io/a:1 in") && err.contains("(1f1f1f1f1f1f1, 4.26 MB)"),
        "{err}"
    );
    assert!(
        err.contains("error: r.io/absent:1: PullImage: r.io/absent:1: the registry"),
        "{err}"
    );
    let (_, out, _) = served.kelson("images").await;
    let table = "IMAGE   TAG  IMAGE ID          SIZE\nr.io/a  1    1f1f1f1f1f1f1  4.26 MB\n";
    assert_eq!(out, table);
    let (_, out, _) = served.kelson("images -o yaml").await;
    assert!(
        out.starts_with("images:") && out.contains("size: \"4261550\""),
        "{out}"
    );
    assert_eq!(served.kelson("rmi r.io/a:1").await.0, 0);
    let (code, _, err) = served.kelson("rmi r.io/a:1").await;
    assert!(code == 1 && err.contains("no such image"), "{err}");
}

#[tokio::test]
async fn run_in_the_foreground_prints_the_log_and_passes_the_exit_code_on() {
    let served = serve().await;
    let (code, out, err) = served
        .kelson("run --log-dir LOGS --name web r.io/a:1 true")
        .await;
    assert_eq!((code, out.as_str()), (3, "hello\n"));
    assert!(err.ends_with("bad\n"), "{err}");
    let (_, out, _) = served.kelson("pods").await;
    let line: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
    let expected = [
        "0001aaaaaaaaa",
        "3",
        "minutes",
        "ago",
        "NotReady",
        "web",
        "default",
        "0",
        "(default)",
    ];
    assert_eq!(line, expected);
    let (_, out, _) = served.kelson("logs --tail 1 -t web").await;
    assert_eq!(out, "");
    let (_, out, err) = served.kelson("logs -f -t web").await;
    assert_eq!(out, "2026-11-20T10:00:00Z hello\n");
    assert_eq!(err, "2026-11-20T10:00:01Z bad\n");
    assert_eq!(served.kelson("rm web").await.0, 0);
    assert_eq!(served.kelson("pods -q").await.1, "");
}

#[tokio::test]
async fn run_with_rm_or_a_failed_start_leaves_nothing() {
    let served = serve().await;
    let (code, _, err) = served
        .kelson("run --pull never --log-dir LOGS r.io/a:1 true")
        .await;
    assert!(code == 1 && err.contains("--pull never"), "{err}");
    assert_eq!(
        served
            .kelson("run --rm --log-dir LOGS r.io/a:1 true")
            .await
            .0,
        3
    );
    let (code, _, err) = served.kelson("run --log-dir LOGS r.io/a:1 missing").await;
    assert!(
        code == 1 && err.contains("is not in the image (Unknown)"),
        "{err}"
    );
    assert_eq!(served.kelson("pods -q").await.1, "");
    let left: Vec<_> = fs::read_dir(served.directory.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the socket: {left:?}");
}

#[tokio::test]
async fn a_detached_container_is_seen_used_stopped_and_removed() {
    let served = serve().await;
    let (code, out, _) = served
        .kelson("run -d --log-dir LOGS --name web r.io/a:1 sleep")
        .await;
    let pod = out.trim();
    assert_eq!((code, pod.len()), (0, 64));
    let (_, out, _) = served.kelson("ps").await;
    assert!(
        out.lines()
            .nth(1)
            .unwrap()
            .contains("r.io/a:1  1 minute ago  Running  a"),
        "{out}"
    );
    let (_, out, _) = served.kelson("ps -o json").await;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["containers"][0]["podSandboxId"], pod);
    assert_eq!(json["containers"][0]["state"], "CONTAINER_RUNNING");
    let (code, _, err) = served.kelson("exec -it web sh").await;
    assert!(code == 1 && err.contains("leave out -t"), "{err}");
    let (_, out, _) = served.kelson("stats web").await;
    let cells: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        cells[1..],
        ["a", "web", "50.00", "3.00", "MiB", "-", "-"],
        "{out}"
    );
    let (code, _, err) = served.kelson("rm web a").await;
    assert!(code == 1 && err.matches("--force").count() == 2, "{err}");
    assert_eq!(served.kelson("stop web").await.0, 0);
    assert_eq!(served.kelson("ps -q").await.1, "");
    assert_eq!(served.kelson("ps -aq").await.1.trim().len(), 64);
    assert_eq!(served.kelson("rm web").await.0, 0);
    assert_eq!(served.kelson("ps -aq").await.1, "");
}

#[tokio::test]
async fn inspect_shows_pods_containers_and_images() {
    let served = serve().await;
    served
        .kelson("run --log-dir LOGS --name web r.io/a:1 true")
        .await;
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let pod = json(&served.kelson("inspect web").await.1);
    assert_eq!(pod["status"]["network"]["ip"], "10.1.2.3");
    assert_eq!(pod["status"]["metadata"]["namespace"], "default");
    let both = json(&served.kelson("inspect a r.io/a:1").await.1);
    assert_eq!(both[0]["status"]["exitCode"], 3);
    assert_eq!(both[0]["pid"], 17);
    assert_eq!(both[1]["status"]["repoTags"][0], "r.io/a:1");
    let (code, _, err) = served.kelson("inspect nothing").await;
    assert!(code == 1 && err.contains("nor is it an image"), "{err}");
}

#[tokio::test]
async fn info_and_version_do_without_optional_calls() {
    let served = serve().await;
    let (code, out, _) = served.kelson("info").await;
    assert_eq!(code, 0);
    assert!(
        out.contains("NetworkReady:   no: NoNetworkConfig: no conflist"),
        "{out}"
    );
    assert!(out.contains("Cgroup driver:  not told"), "{out}");
    let (_, out, _) = served.kelson("info -o json").await;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["config"]["root"], "/x");
    let (_, out, _) = served.kelson("version").await;
    assert!(out.ends_with("runtime fake 7, CRI v1\n"), "{out}");
    let (code, _, err) = served.kelson("events").await;
    assert!(
        code == 1 && err.contains("next: this runtime does not offer the call"),
        "{err}"
    );
}
