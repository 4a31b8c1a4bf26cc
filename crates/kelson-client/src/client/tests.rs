//! The client against small real servers on unix sockets.

use std::path::PathBuf;

use kelson_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

use super::*;

struct Fake;

#[tonic::async_trait]
impl RuntimeService for Fake {
    async fn version(
        &self,
        request: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        match request.get_ref().version.as_str() {
            "wait" => std::future::pending().await,
            version => Ok(Response::new(VersionResponse {
                version: version.to_owned(),
                ..Default::default()
            })),
        }
    }

    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        // More than gRPC's default limit of 4 MiB.
        let container = Container {
            image_ref: "x".repeat(6 << 20),
            ..Default::default()
        };
        Ok(Response::new(ListContainersResponse {
            containers: vec![container],
        }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        Err(Status::not_found(format!(
            "no container {}",
            request.get_ref().container_id
        )))
    }
}

struct Server {
    endpoint: Endpoint,
    _directory: tempfile::TempDir,
}

fn socket() -> (tempfile::TempDir, PathBuf, Endpoint) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cri.sock");
    let endpoint = Endpoint::parse(path.to_str().unwrap(), "test").unwrap();
    (directory, path, endpoint)
}

fn serve() -> Server {
    let (directory, path, endpoint) = socket();
    let incoming = UnixListenerStream::new(UnixListener::bind(path).unwrap());
    let service = RuntimeServiceServer::new(Fake).max_encoding_message_size(MAX_MESSAGE_SIZE);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
    Server {
        endpoint,
        _directory: directory,
    }
}

#[tokio::test]
async fn large_answers_pass_and_errors_keep_code_and_message() {
    let server = serve();
    let client = Client::connect(&server.endpoint).await.unwrap();
    let list = client
        .list_containers(ListContainersRequest::default())
        .await
        .unwrap();
    assert_eq!(list.containers[0].image_ref.len(), 6 << 20);

    let error = client
        .start_container(StartContainerRequest {
            container_id: "web".into(),
        })
        .await
        .unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        "StartContainer: no container web (NotFound)"
    );

    let error = client.status(StatusRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Unimplemented));
    assert!(error.next_step().unwrap().contains("does not offer"));
}

#[tokio::test]
async fn a_silent_runtime_meets_the_deadline() {
    let server = serve();
    let client = Client::connect(&server.endpoint).await.unwrap();
    let mut call = client.runtime.clone();
    let answer = client
        .within(
            "Version",
            Some(Duration::from_millis(50)),
            call.version(VersionRequest {
                version: "wait".into(),
            }),
        )
        .await;
    assert!(
        matches!(answer, Err(Error::Deadline { rpc: "Version", .. })),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_daemon_that_dies_is_reported_as_a_lost_connection() {
    let (_directory, path, endpoint) = socket();
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut first_bytes = [0; 24];
            let _ = stream.read_exact(&mut first_bytes).await;
        }
    });
    let client = Client::connect(&endpoint).await.unwrap();
    let answer = client.version(VersionRequest::default()).await;
    assert!(
        matches!(answer, Err(Error::Lost { rpc: "Version", .. })),
        "{answer:?}"
    );
}

#[tokio::test]
async fn why_a_connection_fails_is_said_with_the_next_step() {
    let (_directory, path, endpoint) = socket();
    let error = Client::connect(&endpoint).await.unwrap_err();
    assert!(
        error.next_step().unwrap().contains("--runtime-endpoint"),
        "{error}"
    );

    drop(UnixListener::bind(&path).unwrap());
    let error = Client::connect(&endpoint).await.unwrap_err();
    assert!(
        error.next_step().unwrap().contains("nobody listens"),
        "{error}"
    );

    let absent = Endpoint::find(None, |_| None).unwrap();
    let error = Error::Connect {
        endpoint: absent,
        source: std::io::ErrorKind::NotFound.into(),
    };
    assert!(error.next_step().unwrap().contains("kelson serve"));
}
