//! The daemon's log: lines on standard error, for people or as JSON.
//!
//! error: something the daemon should do cannot be done. warn: a request failed, or something is
//! wrong that Kelson can live with. info: the life of the daemon and of pods. debug: every verb.

use std::io::{IsTerminal, stderr};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

/// Sets up the log once; `KELSON_LOG` in the environment wins over the configuration.
pub(crate) fn init(config: &Config) -> anyhow::Result<()> {
    let filter = std::env::var("KELSON_LOG").unwrap_or_else(|_| config.log_level.clone());
    let filter: EnvFilter = filter
        .parse()
        .with_context(|| format!("log filter {filter:?} is wrong"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal());
    let set = match config.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("cannot set up the log: {error}"))
}
