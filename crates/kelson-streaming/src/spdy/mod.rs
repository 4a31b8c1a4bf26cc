//! SPDY/3.1 as Go's Kubernetes peers speak it (moby/spdystream), both roles.
//!
//! A `Session` is one connection with many streams. What those peers do decides what is done
//! here: they send no WINDOW_UPDATE, honour none and pay no attention to SETTINGS, so there is no
//! flow control by stream: a stream whose [`Reader`](crate::Reader) is full stops its connection.
//! A GOAWAY is the last that they read. Data before the SYN_REPLY is lost on them.

mod dictionary;
mod frame;
mod headers;
mod session;
mod table;

pub use frame::{Decoder, Encoder, Frame, FrameError, MAX_CONTROL_FRAME, data, status};
pub use headers::{Headers, MAX_HEADER_BLOCK, MAX_HEADERS, value};
pub(crate) use session::{Incoming, Role, Session};
pub use session::{MAX_STREAMS, OpenError};
pub(crate) use table::Duplex;
