//! WebSocket (RFC 6455) as Kubernetes uses it, both roles: channels or a tunnel.
//!
//! The first byte of a message is its channel (`channel.k8s.io`, binary) or its digit
//! (`base64.channel.k8s.io`, text). `v5` can close a channel: 255, then the channel's number;
//! only clients do, because Go's client takes no close from a server. In a tunnel
//! (`SPDY/3.1+portforward.k8s.io`) the messages together are one stream of bytes.

mod channels;
mod frame;
mod handshake;

pub(crate) use channels::{Channels, Codec, tunnel};
pub use frame::{Decoder, Event, FrameError, Side, close, message, ping, pong};
pub(crate) use handshake::{accept, key};
