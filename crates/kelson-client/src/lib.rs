//! The CRI client: one connection to a runtime's unix socket, a deadline for every call, and errors that
//! say what happened, why, and what to do next.
//!
//! It speaks to any runtime that offers CRI v1 and never uses anything that only Kelson has. It keeps no
//! state beyond the connection and never prints.

mod client;
mod endpoint;
mod error;

pub use client::{Client, Events};
pub use endpoint::{DEFAULT_ENDPOINT, Endpoint, EndpointError};
pub use error::{Code, Error};
