//! `kelson info`: whether the runtime is ready, and if not, why; its handlers, features and disk use.

use anyhow::Result;
use kelson_client::{Client, Error};
use kelson_cri::v1::{
    FilesystemUsage, ImageFsInfoRequest, RuntimeConfigRequest, StatusRequest, VersionRequest,
};

use super::view::InfoView;
use crate::ui::{self, Format, Io, Output, text};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let version = client.version(VersionRequest::default()).await?;
    let status = client.status(StatusRequest { verbose: true }).await?;
    let config = optional(client.runtime_config(RuntimeConfigRequest {}).await)?;
    let disk = optional(client.image_fs_info(ImageFsInfoRequest {}).await)?;
    let disk: Vec<FilesystemUsage> = disk.unwrap_or_default().image_filesystems;
    let view = InfoView::new(status, config.as_ref(), disk);
    if args.output.format != Format::Table {
        ui::structured(io.out, args.output.format, &view)?;
        return Ok(0);
    }
    let (name, version) = (version.runtime_name, version.runtime_version);
    writeln!(
        io.out,
        "Runtime:        {name} {version} at {}",
        client.endpoint()
    )?;
    for condition in &view.status.conditions {
        let (reason, message) = (&condition.reason, &condition.message);
        let state = if condition.status {
            "yes".into()
        } else {
            format!("no: {reason}: {message}")
        };
        writeln!(io.out, "{:<15} {state}", format!("{}:", condition.r#type))?;
    }
    writeln!(
        io.out,
        "Cgroup driver:  {}",
        view.cgroup_driver.unwrap_or("not told")
    )?;
    let handlers = view
        .runtime_handlers
        .iter()
        .map(|handler| match handler.name.as_str() {
            "" => "(default)",
            name => name,
        });
    writeln!(
        io.out,
        "Handlers:       {}",
        handlers.collect::<Vec<_>>().join(", ")
    )?;
    for usage in &view.image_filesystems {
        let (used, inodes) = (text::size(usage.used_bytes), usage.inodes_used);
        writeln!(
            io.out,
            "Images:         {used}, {inodes} inodes in {}",
            usage.mountpoint
        )?;
    }
    Ok(0)
}

/// A call that older runtimes do not offer.
fn optional<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Err(error) if error.is_unimplemented() => Ok(None),
        answer => answer.map(Some),
    }
}
