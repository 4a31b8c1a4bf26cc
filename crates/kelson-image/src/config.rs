//! What an operator can set about images. Limits that guard against hostile content are constants
//! of [`manifest`](crate::manifest); the numbers here are about networks, which differ.

use std::path::PathBuf;
use std::time::Duration;

use crate::platform::Platform;

/// Configuration of [`Images`](crate::Images).
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// Directory of `images.redb` and `blobs/`; created if missing, mode 0700.
    pub root: PathBuf,
    /// Directory with one directory per registry, each with a `hosts.toml` (containerd's schema).
    /// It need not exist. It is read on each pull.
    pub certs_dir: PathBuf,
    /// Layers of one image that are downloaded and unpacked at the same time.
    pub max_concurrent_downloads: usize,
    /// The same for all images together: it bounds memory (about half a MiB each in flight) and
    /// threads (one each).
    pub max_downloads: usize,
    /// Images that are reported as pinned, so that the kubelet's garbage collection spares them: a
    /// reference, a prefix as `docker.io/library/*`, or a part as `*pause*`.
    pub pinned: Vec<String>,
    /// Time limits and retries.
    pub network: NetworkConfig,
    /// The platform whose images are pulled.
    pub platform: Platform,
}

/// Time limits and retries of downloads.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// To connect to a registry, unless `dial_timeout` in `hosts.toml` says otherwise.
    pub connect_timeout: Duration,
    /// From the request to the response's headers, the connection included.
    pub response_timeout: Duration,
    /// Fewest bytes that a download must receive in each `progress_window` of waiting; otherwise
    /// the attempt fails and the next one resumes it.
    pub progress_bytes: u64,
    /// See `progress_bytes`. Time in which the disk, not the network, is slow does not count.
    pub progress_window: Duration,
    /// Attempts of one request at one registry host. An attempt that received `progress_bytes` of
    /// a blob starts the count anew.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles with each further one, and a random half of it
    /// is left out.
    pub backoff: Duration,
    /// Longest pause between two attempts.
    pub backoff_max: Duration,
    /// Longest pause that a registry may ask for with `Retry-After`.
    pub retry_after_max: Duration,
}

impl ImageConfig {
    /// The defaults, for a store in `root` and registries configured in `certs_dir`.
    pub fn new(root: impl Into<PathBuf>, certs_dir: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            certs_dir: certs_dir.into(),
            max_concurrent_downloads: 6,
            max_downloads: 16,
            pinned: Vec::new(),
            network: NetworkConfig::default(),
            platform: Platform::host(),
        }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            response_timeout: Duration::from_secs(30),
            progress_bytes: 64 << 10,
            progress_window: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(15),
            retry_after_max: Duration::from_secs(60),
        }
    }
}
