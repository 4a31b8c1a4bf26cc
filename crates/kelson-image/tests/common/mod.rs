//! A registry in this process that misbehaves as a test wants, and a place to pull to.

#![allow(dead_code, reason = "each test program uses its part of the fixture")]

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kelson_image::layout::{BuiltImage, ImageBuilder, LayerFormat, descriptor};
use kelson_image::serve::Registry;
use kelson_image::{
    Credentials, ImageConfig, ImageId, Images, NetworkConfig, Platform, PullError, PullRequest,
};
use kelson_snapshot::{Digest, Options, Overlayfs, Snapshotter};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Whether the test can run; says why not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// What a request looked like.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// A body made of whatever is sent.
pub(crate) struct Flow(mpsc::Receiver<io::Result<Bytes>>);

impl Body for Flow {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0
            .poll_recv(context)
            .map(|item| item.map(|item| item.map(Frame::data)))
    }
}

/// What to do with a request.
pub(crate) enum Act {
    /// Answer it.
    Serve,
    /// Answer with this status and header.
    Status(u16, Option<(&'static str, String)>),
    /// Answer with this body.
    Body(u16, Vec<(&'static str, String)>, Bytes),
    /// Answer, but break the connection after so many bytes of the body.
    Cut(usize),
    /// Answer with this many bytes at a time, and a pause after each.
    Drip(usize, Duration),
    /// Answer with the right headers of the real thing, but these bytes.
    Instead(Bytes),
    /// Answer with a body that does not end.
    Endless,
    /// Never answer.
    Hang,
}

type Hook = Box<dyn Fn(&Seen, usize) -> Act + Send + Sync>;

/// A running registry.
pub(crate) struct Fixture {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    /// What is served; a test may change it.
    pub(crate) registry: Arc<Mutex<Registry>>,
    task: JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fixture {
    /// Serves `registry`. `hook` sees each request and how many came before it.
    pub(crate) async fn start(
        registry: Registry,
        hook: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let registry = Arc::new(Mutex::new(registry));
        let hook: Arc<Hook> = Arc::new(Box::new(hook));
        let (log, served) = (Arc::clone(&seen), Arc::clone(&registry));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (registry, hook, log) =
                    (Arc::clone(&served), Arc::clone(&hook), Arc::clone(&log));
                let service = service_fn(move |request| {
                    let (registry, hook, log) =
                        (Arc::clone(&registry), Arc::clone(&hook), Arc::clone(&log));
                    async move { Ok::<_, Infallible>(respond(request, &registry, &hook, &log).await) }
                });
                connections.spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            seen,
            registry,
            task,
        }
    }

    /// The reference of an image in this registry.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn blob_requests(&self) -> usize {
        self.seen().iter().filter(|seen| seen.is_blob()).count()
    }
}

async fn respond(
    request: Request<Incoming>,
    registry: &Mutex<Registry>,
    hook: &Hook,
    log: &Mutex<Vec<Seen>>,
) -> Response<Flow> {
    let (head, body) = request.into_parts();
    let seen = Seen {
        method: head.method.clone(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers.clone(),
        body: body.collect().await.unwrap().to_bytes(),
    };
    let before = {
        let mut log = log.lock().unwrap();
        log.push(seen.clone());
        log.len() - 1
    };
    let served = registry
        .lock()
        .unwrap()
        .respond(&Request::from_parts(head, ()));
    match hook(&seen, before) {
        Act::Serve => whole(served).await,
        Act::Status(status, header) => {
            let headers = header.into_iter().collect();
            build(status, headers, Bytes::new())
        }
        Act::Body(status, headers, bytes) => build(status, headers, bytes),
        Act::Cut(at) => {
            let (head, body) = served.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let (sender, receiver) = mpsc::channel(2);
            let length = bytes.len() as u64;
            tokio::spawn(async move {
                let _ = sender.send(Ok(bytes.slice(..at.min(bytes.len())))).await;
                // The bytes reach the socket before the connection breaks.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let _ = sender.send(Err(io::Error::other("cut on purpose"))).await;
            });
            with_length(Response::from_parts(head, Flow(receiver)), length)
        }
        Act::Drip(size, pause) => {
            let (head, body) = served.into_parts();
            let mut bytes = body.collect().await.unwrap().to_bytes();
            let length = bytes.len() as u64;
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(async move {
                while !bytes.is_empty() {
                    let piece = bytes.split_to(size.min(bytes.len()));
                    if sender.send(Ok(piece)).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                }
            });
            with_length(Response::from_parts(head, Flow(receiver)), length)
        }
        Act::Instead(bytes) => build(200, Vec::new(), bytes),
        Act::Endless => {
            let (sender, receiver) = mpsc::channel(4);
            tokio::spawn(async move {
                while sender
                    .send(Ok(Bytes::from(vec![b' '; 65_536])))
                    .await
                    .is_ok()
                {}
            });
            Response::new(Flow(receiver))
        }
        Act::Hang => std::future::pending().await,
    }
}

fn with_length(mut response: Response<Flow>, length: u64) -> Response<Flow> {
    response
        .headers_mut()
        .insert("content-length", length.into());
    response
}

async fn whole(response: Response<impl Body<Data = Bytes, Error = Infallible>>) -> Response<Flow> {
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let length = bytes.len() as u64;
    let (sender, receiver) = mpsc::channel(1);
    sender.try_send(Ok(bytes)).unwrap();
    with_length(Response::from_parts(head, Flow(receiver)), length)
}

fn build(status: u16, headers: Vec<(&'static str, String)>, bytes: Bytes) -> Response<Flow> {
    let (sender, receiver) = mpsc::channel(1);
    let length = bytes.len() as u64;
    sender.try_send(Ok(bytes)).unwrap();
    let mut response = Response::new(Flow(receiver));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().append(name, value.parse().unwrap());
    }
    with_length(response, length)
}

/// Directories of a node, removed at the end.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) images: Images,
    pub(crate) snapshots: Arc<Overlayfs>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// One whose configuration is another.
    pub(crate) fn with(change: impl FnOnce(&mut ImageConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let (images, snapshots) = open(config);
        Self {
            dir,
            images,
            snapshots,
        }
    }

    /// Closes the store and opens it again, as after a crash.
    pub(crate) fn reopen(self) -> Self {
        let Self {
            dir,
            images,
            snapshots,
        } = self;
        drop((images, snapshots));
        let (images, snapshots) = open(config(dir.path()));
        Self {
            dir,
            images,
            snapshots,
        }
    }

    pub(crate) async fn pull(&self, name: &str) -> Result<ImageId, PullError> {
        self.pull_as(name, Credentials::anonymous()).await
    }

    pub(crate) async fn pull_as(
        &self,
        name: &str,
        credentials: Credentials,
    ) -> Result<ImageId, PullError> {
        let reference = name.parse().unwrap();
        self.images
            .pull(
                PullRequest {
                    reference,
                    credentials,
                },
                None,
            )
            .await
    }

    /// Writes `hosts.toml` for a registry.
    pub(crate) fn hosts(&self, registry: &str, text: &str) {
        let dir = self.dir.path().join("certs.d").join(registry);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    /// The content of a file in the image.
    pub(crate) fn read(&self, image: &str, path: &str) -> Option<String> {
        let image = self.images.resolve(image)?;
        let view = self.snapshots.view(&image.chain).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let file = rustix::fs::openat(&view, path.trim_start_matches('/'), flags, 0.into()).ok()?;
        io::read_to_string(std::fs::File::from(file)).ok()
    }

    /// Nothing is left of any pull.
    pub(crate) fn assert_empty(&self) {
        assert!(self.images.list().is_empty());
        self.images.collect().unwrap();
        let staging = self.dir.path().join("root/staging");
        let left: Vec<PathBuf> = std::fs::read_dir(&staging)
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "{left:?}");
    }
}

pub(crate) fn config(root: &Path) -> ImageConfig {
    let mut config = ImageConfig::new(root.join("root"), root.join("certs.d"));
    config.platform = amd64();
    config.network = NetworkConfig {
        connect_timeout: Duration::from_secs(2),
        response_timeout: Duration::from_secs(2),
        progress_bytes: 16 << 10,
        progress_window: Duration::from_millis(600),
        attempts: 3,
        backoff: Duration::from_millis(20),
        backoff_max: Duration::from_millis(100),
        retry_after_max: Duration::from_secs(2),
    };
    config
}

pub(crate) fn amd64() -> Platform {
    Platform {
        os: "linux".into(),
        architecture: "amd64".into(),
        variant: "v2".into(),
    }
}

fn open(config: ImageConfig) -> (Images, Arc<Overlayfs>) {
    let snapshots = Arc::new(Overlayfs::open(&config.root, Options::default()).unwrap());
    let images = Images::open(config, Arc::clone(&snapshots) as Arc<dyn Snapshotter>).unwrap();
    (images, snapshots)
}

/// An image with one text file.
pub(crate) fn hello(text: &str) -> BuiltImage {
    builder(text).build()
}

/// An image whose layer has about this many bytes and cannot be compressed.
pub(crate) fn large(size: usize) -> BuiltImage {
    let mut state = 88_172_645_463_325_252_u64;
    let bytes: Vec<u8> = (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    builder("large")
        .bytes("/noise", &bytes, 0o644)
        .unwrap()
        .build()
}

pub(crate) fn builder(text: &str) -> ImageBuilder {
    ImageBuilder::new()
        .platform(Platform {
            variant: String::new(),
            ..amd64()
        })
        .format(LayerFormat::Gzip)
        .env(&["A=b"])
        .user("1000:100")
        .bytes("/etc/hello", text.as_bytes(), 0o644)
        .unwrap()
}

/// Puts the layers of some images on top of each other, and serves the result as `stack:latest`.
pub(crate) fn stack(registry: &mut Registry, images: &[BuiltImage]) {
    let parse = |bytes: &Bytes| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let mut config = parse(&images[0].config);
    let mut manifest = parse(&images[0].manifest);
    let all = |document: fn(&BuiltImage) -> &Bytes, pointer: &str| -> serde_json::Value {
        images
            .iter()
            .map(|image| parse(document(image)).pointer(pointer).unwrap().clone())
            .collect()
    };
    config["rootfs"]["diff_ids"] = all(|image| &image.config, "/rootfs/diff_ids/0");
    manifest["layers"] = all(|image| &image.manifest, "/layers/0");
    let config = Bytes::from(config.to_string());
    manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &config);
    registry.add_blob(config);
    for image in images {
        registry.add_blob(image.layer.clone());
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    registry.add_manifest("stack", "latest", media_type, manifest.to_string().into());
}

/// A registry with `hello:latest`.
pub(crate) fn registry(image: &BuiltImage) -> Registry {
    let mut registry = Registry::new();
    registry.add_image("hello", "latest", image);
    registry
}

pub(crate) fn id(image: &BuiltImage) -> ImageId {
    Digest::of(&image.config).into()
}

/// The chain of causes as an edge prints it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
