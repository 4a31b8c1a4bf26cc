//! What all commands share when they speak: where output goes, tables, and short forms for people.

pub(crate) mod table;
pub(crate) mod text;

use std::io::{self, Write};

use serde::Serialize;

/// Where a command writes and what it knows about it. Tests pass buffers.
pub(crate) struct Io<'a> {
    /// Results.
    pub(crate) out: &'a mut dyn Write,
    /// Progress, remarks, errors.
    pub(crate) err: &'a mut dyn Write,
    /// Whether a person watches `err`, so that a spinner makes sense.
    pub(crate) watched: bool,
    /// The time, in nanoseconds since 1970.
    pub(crate) now: fn() -> i64,
}

/// The form of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; names as in the CRI's JSON form.
    Json,
    /// The same as YAML.
    Yaml,
}

/// The flag `-o`.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Output {
    /// Form of the output
    #[arg(
        short = 'o',
        long = "output",
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub(crate) format: Format,
}

/// Writes `value` for programs. [`Format::Table`] counts as JSON here.
pub(crate) fn structured(
    out: &mut dyn Write,
    format: Format,
    value: &impl Serialize,
) -> io::Result<()> {
    match format {
        Format::Table | Format::Json => {
            serde_json::to_writer_pretty(&mut *out, value)?;
            writeln!(out)
        }
        Format::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
            write!(out, "{text}")
        }
    }
}

/// The time, in nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
