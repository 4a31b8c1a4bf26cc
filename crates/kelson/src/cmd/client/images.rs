//! `kelson images`: lists images, one line for each name.

use anyhow::Result;
use kelson_client::Client;
use kelson_cri::v1::{Image, ImageFilter, ImageSpec, ListImagesRequest};

use super::view::{self, ImageView};
use crate::ui::table::Table;
use crate::ui::{self, Format, Io, Output, text};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this image
    image: Option<String>,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show digests of manifests
    #[arg(long)]
    digests: bool,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(args: Args, client: &Client, io: &mut Io<'_>) -> Result<u8> {
    let spec = args.image.map(|image| ImageSpec {
        image,
        ..Default::default()
    });
    let filter = spec.map(|image| ImageFilter { image: Some(image) });
    let images = client
        .list_images(ListImagesRequest { filter })
        .await?
        .images;
    if args.quiet {
        for image in &images {
            writeln!(io.out, "{}", image.id)?;
        }
    } else if args.output.format == Format::Table {
        table(&images, args.digests).write(io.out)?;
    } else {
        let items: Vec<ImageView> = images.into_iter().map(Into::into).collect();
        ui::structured(io.out, args.output.format, &view::list("images", items))?;
    }
    Ok(0)
}

fn table(images: &[Image], digests: bool) -> Table {
    let headings = ["IMAGE", "TAG", "DIGEST", "IMAGE ID", ">SIZE"];
    let keep = |column: usize| digests || column != 2;
    let columns: Vec<&str> = (0..5).filter(|&c| keep(c)).map(|c| headings[c]).collect();
    let mut table = Table::new(&columns);
    let mut rows: Vec<[String; 5]> = images.iter().flat_map(rows).collect();
    rows.sort();
    for row in rows {
        table.row(
            row.into_iter()
                .enumerate()
                .filter(|(c, _)| keep(*c))
                .map(|(_, cell)| cell),
        );
    }
    table
}

/// A row for each tag; for an image without a tag, one for each digest, or one that says so.
fn rows(image: &Image) -> Vec<[String; 5]> {
    let none = || "<none>".to_owned();
    let id = || text::short_id(&image.id).to_owned();
    let digest_of = |name: &str| {
        let digests = image.repo_digests.iter().filter_map(|d| d.split_once('@'));
        digests
            .filter(|(n, _)| *n == name)
            .map(|(_, d)| text::short_id(d).to_owned())
            .next()
    };
    let row = |name: String, tag: String, digest: Option<String>| {
        [
            name,
            tag,
            digest.unwrap_or_else(none),
            id(),
            text::size(image.size),
        ]
    };
    if !image.repo_tags.is_empty() {
        let tags = image.repo_tags.iter().map(|reference| split_tag(reference));
        return tags
            .map(|(name, tag)| row(name.into(), tag.into(), digest_of(name)))
            .collect();
    }
    let names = image.repo_digests.iter().filter_map(|d| d.split_once('@'));
    let rows: Vec<_> = names
        .map(|(n, d)| row(n.into(), none(), Some(text::short_id(d).into())))
        .collect();
    if rows.is_empty() {
        vec![row(none(), none(), None)]
    } else {
        rows
    }
}

/// `name:tag` into its parts; a colon before the last slash belongs to a port.
fn split_tag(reference: &str) -> (&str, &str) {
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, "<none>"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_not_a_tag() {
        assert_eq!(
            split_tag("localhost:5000/a"),
            ("localhost:5000/a", "<none>")
        );
        assert_eq!(split_tag("localhost:5000/a:1"), ("localhost:5000/a", "1"));
    }

    #[test]
    fn each_name_has_a_line_and_an_image_without_name_too() {
        let id = format!("sha256:{}", "ab".repeat(32));
        let image = |tags: &[&str], digests: &[&str]| Image {
            id: id.clone(),
            repo_tags: tags.iter().map(|&t| t.into()).collect(),
            repo_digests: digests.iter().map(|&d| d.into()).collect(),
            size: 1_500_000,
            ..Default::default()
        };
        let images = [
            image(
                &["r.io/b:1", "r.io/a:2"],
                &["r.io/a@sha256:cdcdcdcdcdcdcdcd"],
            ),
            image(&[], &["r.io/c@sha256:efefefefefefefef"]),
            image(&[], &[]),
        ];
        let mut out = Vec::new();
        table(&images, true).write(&mut out).unwrap();
        let expected = "\
IMAGE   TAG     DIGEST         IMAGE ID          SIZE
<none>  <none>  <none>         ababababababa  1.50 MB
r.io/a  2       cdcdcdcdcdcdc  ababababababa  1.50 MB
r.io/b  1       <none>         ababababababa  1.50 MB
r.io/c  <none>  efefefefefefe  ababababababa  1.50 MB
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
