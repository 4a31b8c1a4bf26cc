//! Pull and unpack of an image that is not there.

use std::sync::Arc;
use std::time::Instant;

use kelson_cri::v1::{ImageSpec, RemoveImageRequest};

use super::Bench;
use super::report::{Better, Report};

pub(super) async fn run(bench: &Arc<Bench>, report: &mut Report) {
    let image = bench.args.pull_image.as_ref().unwrap_or(&bench.args.image);
    let steps = bench
        .rounds("pull", bench.args.pulls, report, async |peer, _| {
            let spec = ImageSpec {
                image: image.clone(),
                ..Default::default()
            };
            peer.client
                .remove_image(RemoveImageRequest { image: Some(spec) })
                .await?;
            // What the others have left to be written to disk is not this one's to wait for.
            tokio::task::spawn_blocking(rustix::fs::sync).await?;
            let begin = Instant::now();
            peer.pull(image).await?;
            Ok(vec![("pull and unpack", begin.elapsed())])
        })
        .await;
    for (step, peers) in steps.summaries() {
        report.row(format!("{step} {image}"), "ms", Better::Lower, peers);
    }
}
