//! `kelson version`: of this program and of the runtime.

use anyhow::Result;
use kelson_client::Client;
use kelson_cri::v1::VersionRequest;

use super::view::VersionView;
use crate::ui::{self, Format, Io, Output};

const OWN: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: Output,
}

/// Prints the version of this program only.
pub(crate) fn own(io: &mut Io<'_>) -> Result<()> {
    writeln!(io.out, "kelson {OWN}")?;
    Ok(())
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let answer = client
        .version(VersionRequest {
            version: "0.1.0".into(),
        })
        .await?;
    if args.output.format == Format::Table {
        own(io)?;
        let (name, version) = (answer.runtime_name, answer.runtime_version);
        writeln!(
            io.out,
            "runtime {name} {version}, CRI {}",
            answer.runtime_api_version
        )?;
        return Ok(0);
    }
    let view = VersionView {
        client_version: OWN,
        version: answer.version,
        runtime_name: answer.runtime_name,
        runtime_version: answer.runtime_version,
        runtime_api_version: answer.runtime_api_version,
    };
    ui::structured(io.out, args.output.format, &view)?;
    Ok(0)
}
