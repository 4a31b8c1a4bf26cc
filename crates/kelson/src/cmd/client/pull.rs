//! `kelson pull`: pulls images and prints what they resolved to.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use kelson_client::Client;
use kelson_cri::v1::{AuthConfig, ImageSpec, ImageStatusRequest, PullImageRequest};

use super::each;
use crate::ui::{Io, text};

/// The longest password that is read from standard input, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Images, such as `busybox` or `registry.example:5000/team/app:1.2`
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// User name for the registry
    #[arg(short, long, requires = "password_stdin")]
    username: Option<String>,
    /// Read the registry's password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let auth = args
        .username
        .map(|username| read_credentials(username, &mut std::io::stdin()));
    let auth = auth.transpose()?;
    let watched = io.watched;
    let mut notes = Vec::new();
    let code = each(&args.images, io, async |image| {
        notes.push(pull(client, image, auth.clone(), watched).await?);
        Ok(())
    })
    .await?;
    for note in notes {
        writeln!(io.err, "{note}")?;
    }
    Ok(code)
}

fn read_credentials(username: String, input: &mut impl Read) -> Result<AuthConfig> {
    let mut password = String::new();
    input
        .take(MAX_PASSWORD)
        .read_to_string(&mut password)
        .context("read the password from standard input")?;
    let password = password.trim_end_matches(['\r', '\n']).to_owned();
    ensure!(
        !password.is_empty(),
        "the password from standard input is empty"
    );
    Ok(AuthConfig {
        username,
        password,
        ..Default::default()
    })
}

/// Pulls one image, with a spinner where a person watches; returns a sentence about it. The CRI tells
/// nothing about the progress of a pull, so elapsed time is all there is to show.
pub(crate) async fn pull(
    client: &Client,
    image: &str,
    auth: Option<AuthConfig>,
    watched: bool,
) -> Result<String> {
    let spec = ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    };
    let request = PullImageRequest {
        image: Some(spec.clone()),
        auth,
        sandbox_config: None,
    };
    let begin = Instant::now();
    let spinner = watched.then(|| spinner(format!("pulling {image}")));
    let answer = client.pull_image(request).await;
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let reference = answer?.image_ref;
    let status = ImageStatusRequest {
        image: Some(spec),
        verbose: false,
    };
    let size = client
        .image_status(status)
        .await?
        .image
        .map(|image| image.size);
    let size = size
        .map(|size| format!(", {}", text::size(size)))
        .unwrap_or_default();
    let took = text::duration(begin.elapsed());
    Ok(format!(
        "pulled {image} in {took} ({}{size})",
        text::short_id(&reference)
    ))
}

fn spinner(message: String) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let spinner = ProgressBar::new_spinner()
        .with_style(style)
        .with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newline_after_a_password_is_not_a_part_of_it() {
        let read = |text: &str| read_credentials("me".into(), &mut text.as_bytes());
        assert_eq!(read("geheim \r\n").unwrap().password, "geheim ");
        assert!(read("\n").unwrap_err().to_string().contains("empty"));
    }
}
