//! A node of one test: its own directories, cgroup and image; looks at the end whether anything is left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kelson_cgroup::{Cgroup, Hierarchy};
use kelson_image::layout::ImageBuilder;
use kelson_image::serve::{self, Registry};
use kelson_image::{Credentials, ImageConfig, Images, PullRequest};
use kelson_network::{Network, NetworkConfig};
use kelson_pod::config::{
    ContainerConfig, ImageSpec, NamespaceMode, PodConfig, PodMetadata, PodNamespaces,
};
use kelson_pod::{
    Container, ContainerId, ContainerState, Exited, PodId, PodState, Pods, PodsConfig,
};
use kelson_snapshot::{Overlayfs, Snapshotter};

/// Programs that the tests use by name.
const APPLETS: &[&str] = &[
    "cat", "echo", "grep", "id", "ls", "setsid", "sh", "sleep", "true",
];

pub(crate) struct Node {
    dir: tempfile::TempDir,
    cgroup: Cgroup,
    services: Services,
    pods: Option<Pods>,
    pub(crate) image: String,
}

#[derive(Clone)]
struct Services {
    images: Images,
    snapshots: Arc<Overlayfs>,
    network: Network,
    cgroups: Hierarchy,
}

impl Node {
    pub(crate) async fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kelson-pod-{}-{number}", std::process::id());
        let dir = tempfile::Builder::new().prefix(&name).tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let snapshots = Arc::new(Overlayfs::open(&at("lib"), Default::default()).unwrap());
        let images = ImageConfig::new(at("lib"), at("certs.d"));
        let network = NetworkConfig {
            conf_dir: at("net.d"),
            cache_dir: at("cni"),
            ipam_dir: at("ipam"),
            netns_dir: at("netns"),
            ..NetworkConfig::default()
        };
        let cgroups = Hierarchy::detect().unwrap();
        let services = Services {
            images: Images::open(images, snapshots.clone()).unwrap(),
            snapshots,
            network: Network::open(network).unwrap(),
            cgroups,
        };
        let image = pull(&services.images).await;
        let cgroup = Cgroup::new(&services.cgroups, &name).unwrap();
        let mut node = Self {
            dir,
            cgroup,
            services,
            pods: None,
            image,
        };
        node.open().await;
        node
    }

    pub(crate) async fn open(&mut self) {
        let config = PodsConfig {
            root: self.at("lib"),
            state: self.at("run"),
            cgroup_prefix: self.cgroup.path().to_owned(),
            ..PodsConfig::default()
        };
        let Services {
            images,
            snapshots,
            network,
            cgroups,
        } = self.services.clone();
        self.pods = Some(
            Pods::open(config, images, snapshots, network, cgroups)
                .await
                .unwrap(),
        );
    }

    /// Ends the daemon's part and leaves the pods alone.
    pub(crate) async fn close(&mut self) {
        let pods = self.pods.take().unwrap();
        pods.shutdown().await;
        drop(pods);
        // The tasks let go of the store one by one.
        let path = self.at("run/pods.redb");
        for _ in 0..500 {
            if kelson_store::Store::open(&path).is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the store stays in use");
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(crate) fn pods(&self) -> &Pods {
        self.pods.as_ref().unwrap()
    }

    /// A pod on the host's network.
    pub(crate) fn pod(&self, pid: NamespaceMode) -> PodConfig {
        PodConfig {
            metadata: PodMetadata {
                name: "pod".into(),
                namespace: "default".into(),
                uid: "uid".into(),
                attempt: 0,
            },
            log_directory: self.at("logs").to_str().unwrap().into(),
            namespaces: PodNamespaces {
                network: NamespaceMode::Node,
                pid,
                ..PodNamespaces::default()
            },
            ..PodConfig::default()
        }
    }

    /// A container that runs a script in a shell.
    pub(crate) fn shell(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            name: name.into(),
            image: ImageSpec {
                image: self.image.clone(),
                ..ImageSpec::default()
            },
            args: vec!["-c".into(), script.into()],
            log_path: format!("{name}/0.log"),
            ..ContainerConfig::default()
        }
    }

    /// Makes and starts a container.
    pub(crate) async fn run(&self, pod: &PodId, config: ContainerConfig) -> ContainerId {
        let id = self.pods().create_container(pod, config).await.unwrap();
        self.pods().start_container(&id).await.unwrap();
        id
    }

    pub(crate) async fn exec(&self, id: &ContainerId, script: &str) -> String {
        let cmd = vec!["sh".into(), "-c".into(), script.into()];
        let output = self
            .pods()
            .exec_sync(id, cmd, Some(Duration::from_secs(30)))
            .await
            .unwrap();
        assert_eq!(
            output.exit_code,
            0,
            "{script}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Arc<Container> {
        Arc::clone(self.pods().snapshot().container(id).unwrap().1)
    }

    pub(crate) async fn exited(&self, id: &ContainerId) -> Exited {
        until("the container exits", || match &self.container(id).state {
            ContainerState::Exited(exited) => Some(exited.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) fn shim(&self, pod: &PodId) -> rustix::process::Pid {
        match &self.pods().snapshot().pod(pod).unwrap().state {
            PodState::Ready { shim_pid, .. } => {
                rustix::process::Pid::from_raw(i32::try_from(*shim_pid).unwrap()).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Looks whether anything of any pod is left.
    pub(crate) async fn nothing_is_left(&self) {
        let dirs = std::fs::read_dir(self.at("run/pods")).unwrap().count();
        assert_eq!(dirs, 0, "directories of pods are left");
        assert!(
            self.services.snapshots.containers().is_empty(),
            "writable directories are left"
        );
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = self.dir.path().to_str().unwrap();
        assert!(!mounts.contains(own), "mounts are left");
        let state = self.at("run");
        until("all shims are gone", || {
            (!any_shim_of(&state)).then_some(())
        })
        .await;
        if self.cgroup.exists() {
            assert!(self.cgroup.pids().unwrap().is_empty(), "processes are left");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A test that failed leaves processes and mounts.
        let _ = self.cgroup.kill(Duration::from_secs(10));
        let _ = self.cgroup.remove();
        for pod in std::fs::read_dir(self.at("run/pods"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let shm = pod.path().join("shm");
            let _ = rustix::mount::unmount(&shm, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Whether a shim shows the directory on its command line.
fn any_shim_of(state: &Path) -> bool {
    let state = state.to_str().unwrap();
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("shim") && line.contains(state)
    })
}

async fn pull(images: &Images) -> String {
    let mut builder = ImageBuilder::new()
        .file("/bin/busybox", Path::new("/bin/busybox"), 0o755)
        .unwrap();
    for applet in APPLETS {
        builder = builder
            .symlink(&format!("/bin/{applet}"), "busybox")
            .unwrap();
    }
    let image = builder
        .bytes(
            "/etc/passwd",
            b"root:x:0:0::/root:/bin/sh\nsailor:x:1000:1000::/:/bin/sh\n",
            0o644,
        )
        .unwrap()
        .env(&["PATH=/bin"])
        .entrypoint(&["/bin/sh"])
        .build();
    let mut content = Registry::new();
    content.add_image("busybox", "latest", &image);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("{}/busybox:latest", listener.local_addr().unwrap());
    let registry = tokio::spawn(serve::serve(listener, Arc::new(content)));
    let request = PullRequest {
        reference: name.parse().unwrap(),
        credentials: Credentials::anonymous(),
    };
    images.pull(request, None).await.unwrap();
    registry.abort();
    name
}

/// Waits until something is there.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("in 30 s it did not come that {what}");
}
