//! `kelson serve`: the daemon. Log → configuration → build → serve → drain.
//!
//! Building opens the stores, recovers every pod and binds the socket; only then is a client
//! answered. A signal ends the daemon and leaves the pods running.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use kelson_cgroup::Hierarchy;
use kelson_image::{ImageConfig, Images};
use kelson_network::{Fallback, Network, NetworkConfig};
use kelson_pod::{Pods, PodsConfig};
use kelson_server::{About, Deadlines, PodStreams, Rest, Server, Services};
use kelson_snapshot::{Limits, Options, Overlayfs, Snapshotter};
use kelson_streaming::KeyPair;
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tracing::{info, warn};

use crate::config::{self, CgroupDriver, Config, NetworkFallback};
use crate::log;
use crate::trace::Timeline;

/// How long calls under way may take to end after a signal.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs the daemon in the foreground.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// Configuration file; its drop-ins are in conf.d beside it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Use the built-in bridge network when there is no CNI configuration
    #[arg(long)]
    fallback_network: bool,
    /// Write a timeline of calls and their stages in Chrome's trace format, for Perfetto
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// Runs until a signal.
pub(crate) fn run(arguments: &Serve) -> anyhow::Result<ExitCode> {
    let mut config = config::load_or_default(arguments.config.as_deref())?;
    if arguments.fallback_network {
        config.network_fallback = NetworkFallback::Bridge;
    }
    let timeline = arguments.trace.as_deref().map(Timeline::create);
    log::init(&config, timeline.transpose()?)?;
    if !rustix::process::geteuid().is_root() {
        bail!("kelson serve needs root: it makes namespaces, mounts and cgroups; run it with sudo");
    }
    kelson_sys::memory::share_heaps();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .max_blocking_threads(64)
        .thread_keep_alive(KEEP_THREADS)
        .thread_name("kelson")
        .enable_all()
        .build()
        .context("cannot start the threads of the daemon")?;
    runtime.block_on(serve(&config))?;
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(ExitCode::SUCCESS)
}

/// How long a thread without work is kept; each has a stack that was used.
const KEEP_THREADS: Duration = Duration::from_secs(2);

/// Threads for the daemon's own work: it mostly waits, so few are enough.
fn workers() -> usize {
    std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, 4)
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    // A daemon of the same state directory holds this lock until it is gone.
    let _lock = lock(&config.state)?;
    let (pods, streaming, server) = build(config).await?;
    let listener = bind(&config.socket)?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for signals")?;
    info!(socket = %config.socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    tell_systemd(NotifyState::Ready);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tonic::transport::Server::builder()
        .layer(Deadlines)
        .add_routes(server.routes())
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            // An error says that the sender is gone, which means the same.
            let _ = stopped.await;
        });
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        ended = &mut serving => ended.context("the CRI server failed")?,
        _ = terminate.recv() => info!("SIGTERM: ending, pods stay"),
        _ = interrupt.recv() => info!("SIGINT: ending, pods stay"),
    }
    tell_systemd(NotifyState::Stopping);
    // No new clients; those that are connected get their answers.
    let _ = stop.send(());
    remove_socket(&config.socket);
    // Sessions end first, while their clients can still be told; what they run goes on.
    streaming.shutdown().await;
    pods.shutdown().await;
    match tokio::time::timeout(DRAIN, serving).await {
        Ok(ended) => ended.context("the CRI server failed")?,
        Err(_) => info!(
            "calls were still under way after {} s and are cut off",
            DRAIN.as_secs()
        ),
    }
    Ok(())
}

/// Tells systemd, if it started this daemon; the unit file is in contrib/systemd.
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd could not be told");
    }
}

/// Opens the stores and recovers the node.
async fn build(config: &Config) -> anyhow::Result<(Pods, kelson_streaming::Server, Server)> {
    make_dir(&config.root)?;
    let root = config.root.clone();
    let sync = config.sync_layers;
    let max_layer_bytes = config.max_layer_bytes;
    let snapshotter =
        tokio::task::spawn_blocking(move || open_snapshotter(&root, sync, max_layer_bytes))
            .await
            .context("opening the layers was cut off")??;
    let mut image_config = ImageConfig::new(&config.root, &config.certs_dir);
    image_config.max_concurrent_downloads = config.max_concurrent_downloads;
    image_config.pinned = config.pinned_images.clone();
    let layers: Arc<dyn Snapshotter> = snapshotter.clone();
    let images = tokio::task::spawn_blocking(move || Images::open(image_config, layers))
        .await
        .context("opening the images was cut off")??;
    let network = Network::open(network_config(config))?;
    let cgroups = Hierarchy::detect()?;
    if cgroups.vacate_root(Path::new("/proc"))? {
        info!("moved the processes of the root cgroup out of the way of its controllers");
    }
    let pods_config = PodsConfig {
        root: config.root.clone(),
        state: config.state.clone(),
        cgroup_prefix: config.cgroup_prefix.clone(),
        cgroup_driver: match config.cgroup_driver {
            CgroupDriver::Cgroupfs => kelson_pod::CgroupDriver::Cgroupfs,
            CgroupDriver::Systemd => kelson_pod::CgroupDriver::Systemd,
        },
        image_volumes: config.image_volumes,
        cdi_dirs: config.cdi_dirs.clone(),
        passed_annotations: config.passed_annotations.clone(),
        unprivileged_ports: config.unprivileged_ports,
        shm_size: config.shm_size,
        pids_limit: config.pids_limit,
        rlimits: config.rlimits.clone(),
        writable_cgroups: config.writable_cgroups,
        device_owner: config.device_owner,
        unset_seccomp: match config.unset_seccomp {
            true => kelson_pod::config::Profile::RuntimeDefault,
            false => kelson_pod::config::Profile::Unconfined,
        },
        selinux: config.selinux,
        criu: config.checkpoints.then(|| config.criu.clone()),
        ..PodsConfig::default()
    };
    let pods = Pods::open(
        pods_config,
        images.clone(),
        snapshotter,
        network.clone(),
        cgroups,
    )
    .await?;
    // Only now it is known which layers containers of earlier runs need.
    let collector = images.clone();
    tokio::task::spawn_blocking(move || collector.collect())
        .await
        .context("freeing unneeded layers was cut off")??;
    let rest = Rest::start();
    let backend = Arc::new(PodStreams::new(pods.clone(), rest.clone()));
    let streaming = kelson_streaming::Server::bind(streaming_config(config), backend).await?;
    info!(address = streaming.base(), "serving streams");
    let services = Services {
        pods: pods.clone(),
        streaming: streaming.clone(),
        images,
        network,
        about: About {
            config: config.to_json(),
            root: config.root.clone(),
        },
    };
    let server = Server::new(services, rest);
    Ok((pods, streaming, server))
}

/// The streaming server that a configuration describes.
fn streaming_config(config: &Config) -> kelson_streaming::Config {
    // One without the other is refused when the configuration is read.
    let pair = config.streaming_tls_cert.clone();
    let pair = pair.zip(config.streaming_tls_key.clone());
    kelson_streaming::Config {
        address: (config.streaming_address, config.streaming_port).into(),
        idle: Duration::from_secs(config.streaming_idle_timeout),
        tls: pair.map(|(certificate, key)| KeyPair { certificate, key }),
        ..kelson_streaming::Config::default()
    }
}

fn open_snapshotter(
    root: &Path,
    sync: bool,
    max_layer_bytes: u64,
) -> anyhow::Result<Arc<Overlayfs>> {
    let limits = Limits {
        unpacked_bytes: max_layer_bytes,
        ..Limits::default()
    };
    let options = Options { sync, limits };
    Ok(Arc::new(Overlayfs::open(root, options)?))
}

/// The network that a configuration describes.
pub(crate) fn network_config(config: &Config) -> NetworkConfig {
    let fallback = Fallback {
        name: config.fallback_bridge.clone(),
        bridge: config.fallback_bridge.clone(),
        subnets: vec![config.fallback_subnet],
        mtu: None,
    };
    NetworkConfig {
        conf_dir: config.cni_conf_dir.clone(),
        conf_template: config.cni_conf_template.clone(),
        bin_dirs: config.cni_bin_dirs.clone(),
        cache_dir: config.root.join("cni"),
        ipam_dir: config.ipam_dir.clone(),
        netns_dir: config.netns_dir.clone(),
        native: config.cni_native,
        nft_table: config.nft_table.clone(),
        fallback: Some(fallback),
        fallback_for_all: config.network_fallback == NetworkFallback::Bridge,
        ..NetworkConfig::default()
    }
}

fn make_dir(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make directory {}", path.display()))
}

/// Takes the lock of the state directory, so that two daemons never share one.
fn lock(state: &Path) -> anyhow::Result<File> {
    make_dir(state)?;
    let path = state.join("kelson.lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another kelson serves from {}; stop it, or set daemon.state, daemon.root and cri.socket to other paths",
            state.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Binds the socket with mode 0600; a socket that nobody answers is replaced.
fn bind(socket: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = socket.parent() {
        make_dir(parent)?;
    }
    match StdUnixStream::connect(socket) {
        Ok(_) => bail!(
            "somebody already serves on {}; stop it or set cri.socket",
            socket.display()
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(_) => remove_socket(socket),
    }
    // The mode must be right from the first moment: no other user may connect in between.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(socket);
    rustix::process::umask(before);
    let listener = bound.with_context(|| format!("cannot listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot set the mode of {}", socket.display()))?;
    Ok(listener)
}

/// Removes the socket; that it is not there is fine.
fn remove_socket(socket: &Path) {
    // What is left is replaced by the next daemon.
    let _ = std::fs::remove_file(socket);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.sock");
        drop(bind(&path).unwrap());
        let living = bind(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(
            bind(&path)
                .unwrap_err()
                .to_string()
                .contains("already serves")
        );
        drop(living);
    }

    #[test]
    fn a_state_directory_has_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        assert!(
            lock(dir.path())
                .unwrap_err()
                .to_string()
                .contains("another kelson")
        );
        drop(first);
        lock(dir.path()).unwrap();
    }
}
