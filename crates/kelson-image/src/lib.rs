//! Images: references, the registry client, the pull engine, the image store.
//!
//! [`Images`] is the whole of it for callers: it pulls an image so that its bytes flow once from
//! the socket to unpacked files, keeps the record of what is there, answers from memory, and frees
//! the disk of what is removed. Layers themselves are kept by `kelson_snapshot`.
//!
//! [`layout`] and [`serve`] make images from local files and serve them, for demonstrations and
//! tests.
//!
//! The crate never runs anything and knows neither pods nor the CRI's messages. No string of an
//! image is used as a path, a program or an address.

mod config;
mod credentials;
mod error;
mod flight;
mod images;
pub mod layout;
pub mod manifest;
mod platform;
mod progress;
mod pull;
pub mod reference;
mod registry;
pub mod serve;

pub use config::{ImageConfig, NetworkConfig};
pub use credentials::{AuthConfig, Credentials, CredentialsError, Secret};
pub use error::{ImageError, PullError};
pub use images::{Image, ImageId, ImageUser, Images, InUse};
pub use platform::Platform;
pub use progress::{LayerProgress, LayerState, Progress};
pub use pull::PullRequest;
pub use reference::{Reference, ReferenceError};
pub use registry::{HostsError, RequestError};
