//! Why a pull failed, and why the image store could not do what was asked.
//!
//! Several callers may wait for one pull, so its error can be cloned; sources are shared.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kelson_snapshot::{Digest, SnapshotError, UnpackError};
use kelson_store::StoreError;

use crate::credentials::CredentialsError;
use crate::reference::ReferenceError;
use crate::registry::{HostsError, RequestError};

/// Why an image was not pulled. Nothing of the image is visible then.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The name of the image is malformed.
    #[error("cannot pull an image with this name")]
    InvalidReference(#[from] ReferenceError),
    /// The credentials of the request are malformed.
    #[error("cannot use the credentials of the request")]
    InvalidCredentials(#[from] CredentialsError),
    /// The operator's configuration of the registry is wrong.
    #[error("configuration of registry {domain} is wrong; correct it, no restart is needed")]
    Hosts {
        /// The registry.
        domain: String,
        /// The mistake.
        #[source]
        source: Arc<HostsError>,
    },
    /// The registry has no such repository, tag or digest.
    #[error("{reference} is not in the registry; check its name and tag")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// The registry's answer.
        #[source]
        source: Arc<RequestError>,
    },
    /// The registry wants other credentials, or any.
    #[error(
        "the registry does not let us pull {reference}; check that it exists and that the pull \
         secret is right"
    )]
    Unauthorized {
        /// What was asked for.
        reference: String,
        /// The registry's answer.
        #[source]
        source: Arc<RequestError>,
    },
    /// No registry host gave a usable answer, after all attempts: it may work later.
    #[error("no registry host could deliver {what} of {reference}; try again later")]
    RegistryUnavailable {
        /// What was asked for.
        reference: String,
        /// Which part of it.
        what: String,
        /// The last failure.
        #[source]
        source: Arc<RequestError>,
    },
    /// The content is not what its digest says, from any registry host.
    #[error("{what} has digest {got} instead of {expected}; the registry or a proxy is faulty")]
    DigestMismatch {
        /// Which content.
        what: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// The content has another size than announced.
    #[error(
        "{what} does not have the {expected} bytes announced; the registry or a proxy is faulty"
    )]
    SizeMismatch {
        /// Which content.
        what: String,
        /// The announced number of bytes.
        expected: u64,
    },
    /// Something in the image exceeds a limit.
    #[error("{what} exceeds the limit of {limit}; the image cannot be used")]
    TooLarge {
        /// What is limited.
        what: String,
        /// The number.
        limit: u64,
    },
    /// The image is for other machines.
    #[error("image has nothing for {wanted}; it offers {}", offered.join(", "))]
    NoMatchingPlatform {
        /// This machine's platform.
        wanted: String,
        /// Those of the image.
        offered: Vec<String>,
    },
    /// The content is of a kind that cannot be run.
    #[error("{what} cannot be used as a container image; {hint}")]
    Unsupported {
        /// The kind.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A manifest, an index or a configuration is malformed.
    #[error("{what} {digest} is malformed: {reason}")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// No space is left for the image.
    #[error("no space is left to pull the image; remove unused images or enlarge the disk")]
    DiskFull(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// A layer could not be unpacked.
    #[error("layer {layer} could not be unpacked")]
    Unpack {
        /// The layer's blob.
        layer: Digest,
        /// Why.
        #[source]
        source: Arc<UnpackError>,
    },
    /// The layers could not be committed.
    #[error("layer {layer} could not be kept")]
    Snapshot {
        /// The layer's blob.
        layer: Digest,
        /// Why.
        #[source]
        source: Arc<SnapshotError>,
    },
    /// The image could not be recorded.
    #[error("the image could not be recorded")]
    Record(#[source] Arc<ImageError>),
    /// The pull stopped without a result, because of a mistake in this program or at its end.
    #[error("the pull stopped early; try again")]
    Stopped,
}

impl From<ImageError> for PullError {
    fn from(error: ImageError) -> Self {
        if error.is_disk_full() {
            Self::DiskFull(Arc::new(error))
        } else {
            Self::Record(Arc::new(error))
        }
    }
}

/// Why the image store failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The database could not be opened.
    #[error("cannot open the image store")]
    Open(#[from] kelson_store::OpenError),
    /// The database refused an operation.
    #[error("the image store failed")]
    Store(#[from] StoreError),
    /// Layers could not be removed.
    #[error("layers could not be removed")]
    Snapshot(#[from] SnapshotError),
    /// The name is shared by several images.
    #[error("{0:?} is the beginning of several image ids; give more characters")]
    Ambiguous(String),
    /// A file operation failed.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// The operation.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// Whether the cause is a full disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_disk_full(source),
            Self::Snapshot(SnapshotError::DiskFull { .. }) => true,
            _ => false,
        }
    }
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
