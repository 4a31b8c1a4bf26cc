//! `kelson rmi`: removes images with all their names.

use anyhow::{Result, ensure};
use kelson_client::Client;
use kelson_cri::v1::{ImageSpec, ImageStatusRequest, RemoveImageRequest};

use super::each;
use crate::ui::Io;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names or ids of images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    each(&args.images, io, async |image| {
        // Removing an unknown image is no error in the CRI, but a user wants to know.
        let spec = Some(ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        });
        let status = ImageStatusRequest {
            image: spec.clone(),
            verbose: false,
        };
        let known = client.image_status(status).await?.image.is_some();
        ensure!(known, "there is no such image: see `kelson images`");
        client
            .remove_image(RemoveImageRequest { image: spec })
            .await?;
        Ok(())
    })
    .await
}
