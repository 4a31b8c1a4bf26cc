//! The Kubernetes container runtime interface (CRI) v1: messages, clients and servers.
//!
//! All of [`v1`] is generated from `proto/cri/v1/api.proto` by `cargo xtask proto`; change that file, not
//! the Rust. Besides, this crate only holds what a generator cannot know: that credentials must not be
//! printed. It never decides anything about pods or images, and nothing below the gRPC edge uses it.

use std::fmt;

/// The generated messages, `runtime_service_client`, `runtime_service_server`, `image_service_client` and
/// `image_service_server` of the protobuf package `runtime.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    deprecated,
    clippy::all,
    clippy::unwrap_used,
    rustdoc::all,
    reason = "generated"
)]
#[rustfmt::skip]
#[path = "generated/runtime.v1.rs"]
pub mod v1;

/// The longest message that clients of the CRI send or accept: 16 MiB, four times gRPC's default.
pub const MAX_MESSAGE_SIZE: usize = 16 << 20;

/// Says which credentials are there, and shows none of them.
impl fmt::Debug for v1::AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &str| if secret.is_empty() { "" } else { "<hidden>" };
        f.debug_struct("AuthConfig")
            .field("username", &hidden(&self.username))
            .field("password", &hidden(&self.password))
            .field("auth", &hidden(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &hidden(&self.identity_token))
            .field("registry_token", &hidden(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::v1;

    #[test]
    fn credentials_are_not_printed() {
        let request = v1::PullImageRequest {
            auth: Some(v1::AuthConfig {
                username: "s1".into(),
                password: "s2".into(),
                auth: "s3".into(),
                server_address: "registry.example".into(),
                identity_token: "s4".into(),
                registry_token: "s5".into(),
            }),
            ..Default::default()
        };
        let text = format!("{request:?}");
        assert!(text.contains("registry.example"), "{text}");
        for secret in ["s1", "s2", "s3", "s4", "s5"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}
