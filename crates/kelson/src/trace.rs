//! A timeline of what the daemon does, in Chrome's trace format, for `kelson serve --trace`.
//!
//! Every span of Kelson's own crates becomes one event with its begin and its length. Events lie on lanes
//! (threads, in the format's words): a span is on the lane of its parent while nothing else of that parent is
//! open there, else on a free one, so that what runs side by side is shown side by side. Without the flag
//! there is no layer, and the spans of stages cost nothing.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Map, Value, json};
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Longest file, in bytes; what happens later is left out.
const MAX_BYTES: usize = 256 << 20;

/// The layer that writes the timeline.
pub(crate) struct Timeline {
    begin: Instant,
    state: Mutex<State>,
}

struct State {
    out: BufWriter<File>,
    written: usize,
    /// Spans that are open, by lane; the innermost is last.
    lanes: Vec<Vec<Id>>,
}

/// What is known of a span while it is open.
struct Open {
    begin: Duration,
    lane: usize,
    name: String,
    arguments: Map<String, Value>,
}

impl Timeline {
    /// Begins a file; one that is there is replaced.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path)
            .with_context(|| format!("cannot write the timeline to {}", path.display()))?;
        let mut out = BufWriter::new(file);
        // The format allows the closing bracket to be missing: the daemon may end at any moment.
        let head = json!({ "name": "process_name", "ph": "M", "pid": 1, "args": { "name": "kelson serve" } });
        writeln!(out, "[\n{head},")
            .with_context(|| format!("cannot write the timeline to {}", path.display()))?;
        Ok(Self {
            begin: Instant::now(),
            state: Mutex::new(State {
                out,
                written: 0,
                lanes: Vec::new(),
            }),
        })
    }
}

impl State {
    /// A lane for a new span.
    fn enter(&mut self, id: &Id, parent: Option<(usize, Id)>) -> usize {
        let with_parent = parent
            .filter(|(lane, parent)| self.lanes[*lane].last() == Some(parent))
            .map(|(lane, _)| lane);
        let lane = with_parent
            .or_else(|| self.lanes.iter().position(Vec::is_empty))
            .unwrap_or_else(|| {
                self.lanes.push(Vec::new());
                self.lanes.len() - 1
            });
        self.lanes[lane].push(id.clone());
        lane
    }

    fn write(&mut self, event: &Value) {
        let mut line = event.to_string();
        line.push_str(",\n");
        self.written += line.len();
        if self.written > MAX_BYTES {
            return;
        }
        // A full disk must not harm the daemon; the timeline just ends.
        let _ = self.out.write_all(line.as_bytes());
        if self.lanes.iter().all(Vec::is_empty) {
            let _ = self.out.flush();
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Timeline {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut arguments = Arguments(Map::new());
        attributes.record(&mut arguments);
        let mut arguments = arguments.0;
        // A verb of the CRI is told by its name.
        let name = match arguments.remove("verb") {
            Some(Value::String(verb)) => verb,
            _ => span.name().to_owned(),
        };
        let parent = span.parent().and_then(|parent| {
            let lane = parent.extensions().get::<Open>()?.lane;
            Some((lane, parent.id()))
        });
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = state.enter(id, parent);
        let begin = self.begin.elapsed();
        drop(state);
        span.extensions_mut().insert(Open {
            begin,
            lane,
            name,
            arguments,
        });
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let Some(open) = span.extensions_mut().remove::<Open>() else {
            return;
        };
        let end = self.begin.elapsed();
        let microseconds = |time: Duration| time.as_nanos() as f64 / 1000.0;
        let event = json!({
            "name": open.name,
            "cat": span.metadata().target(),
            "ph": "X",
            "ts": microseconds(open.begin),
            "dur": microseconds(end.saturating_sub(open.begin)),
            "pid": 1,
            "tid": open.lane + 1,
            "args": open.arguments,
        });
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.lanes[open.lane].retain(|one| *one != id);
        state.write(&event);
    }
}

/// Collects the fields of a span.
struct Arguments(Map<String, Value>);

impl Visit for Arguments {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0
            .insert(field.name().to_owned(), json!(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::prelude::*;

    use super::*;

    #[test]
    fn what_runs_side_by_side_is_on_other_lanes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        let timeline = Timeline::create(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(timeline);
        tracing::subscriber::with_default(subscriber, || {
            let root = tracing::info_span!("cri", verb = "RunPodSandbox", subject = "p");
            let first = tracing::debug_span!(parent: &root, "shim");
            let second = tracing::debug_span!(parent: &root, "files");
            let inner = tracing::debug_span!(parent: &first, "inner");
            drop((inner, first, second));
            let third = tracing::debug_span!(parent: &root, "save");
            drop((third, root));
        });
        let text = std::fs::read_to_string(&path).unwrap();
        let text = format!("{}]", text.trim_end().trim_end_matches(','));
        let events: Vec<Value> = serde_json::from_str(&text).unwrap();
        let lane = |name: &str| {
            let event = events.iter().find(|event| event["name"] == name).unwrap();
            event["tid"].as_u64().unwrap()
        };
        assert_eq!(lane("RunPodSandbox"), 1);
        assert_eq!((lane("shim"), lane("inner"), lane("save")), (1, 1, 1));
        assert_eq!(lane("files"), 2);
        let root = events.last().unwrap();
        assert_eq!(root["args"], json!({ "subject": "p" }));
        let whole = root["dur"].as_f64().unwrap();
        for event in &events[1..] {
            assert!(event["dur"].as_f64().unwrap() <= whole, "{event}");
        }
    }
}
