//! The daemon's log: lines on standard error, for people or as JSON; and its timeline, if one is asked for.
//!
//! error: something the daemon should do cannot be done. warn: a request failed, or something is
//! wrong that Kelson can live with. info: the life of the daemon and of pods. debug: every verb.

use std::io::{IsTerminal, stderr};

use anyhow::Context;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::{Config, LogFormat};
use crate::trace::Timeline;

type AnyLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Sets up the log once; `KELSON_LOG` in the environment wins over the configuration.
pub(crate) fn init(config: &Config, timeline: Option<Timeline>) -> anyhow::Result<()> {
    let filter = std::env::var("KELSON_LOG").unwrap_or_else(|_| config.log_level.clone());
    let filter: EnvFilter = filter
        .parse()
        .with_context(|| format!("log filter {filter:?} is wrong"))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal());
    let lines: AnyLayer = match config.log_format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let mut layers = vec![lines.with_filter(filter).boxed()];
    if let Some(timeline) = timeline {
        // Whatever the log leaves out: all spans of Kelson's own, and nothing else.
        let own = filter_fn(|one| one.is_span() && one.target().starts_with("kelson"));
        layers.push(timeline.with_filter(own).boxed());
    }
    let set = tracing_subscriber::registry().with(layers).try_init();
    set.map_err(|error| anyhow::anyhow!("cannot set up the log: {error}"))
}
