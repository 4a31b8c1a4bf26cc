//! Pull and unpack of images: when nothing of them is there, when an image with most of the same layers is
//! there, and when all of it is there already.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::Bench;
use super::images::FORMATS;
use super::peer::Peer;
use super::report::{Better, Report};
use super::samples::Step;

pub(super) async fn run(bench: &Arc<Bench>, report: &mut Report) {
    let images: Vec<(String, Option<String>)> = match (&bench.args.pull_image, bench.images.get()) {
        (Some(image), _) => vec![(image.clone(), None)],
        (None, Some(images)) => {
            let both = |format| (images.pull(format, false), Some(images.pull(format, true)));
            FORMATS.iter().map(|(format, _)| both(format)).collect()
        }
        (None, None) => vec![(bench.args.image.clone().unwrap_or_default(), None)],
    };
    for (number, (first, second)) in images.iter().enumerate() {
        let name = match second {
            Some(_) => FORMATS[number].0,
            None => first,
        };
        let steps = bench
            .rounds(
                &format!("pull {name}"),
                bench.args.pulls,
                report,
                async |peer, _| pull(bench, peer, first, second.as_deref()).await,
            )
            .await;
        for (step, peers) in steps.summaries() {
            report.row(format!("pull {name}: {step}"), "ms", Better::Lower, peers);
        }
    }
}

async fn pull(bench: &Bench, peer: &Peer, first: &str, second: Option<&str>) -> Result<Vec<Step>> {
    let all = || [Some(first), second].into_iter().flatten();
    for image in all() {
        peer.remove_image(image).await?;
    }
    bench.settle(peer, &[]).await?;
    // What others have left to be written is not this one's to wait for.
    tokio::task::spawn_blocking(rustix::fs::sync).await?;
    let mut steps = Vec::new();
    let mut time = async |step, image| {
        let begin = Instant::now();
        peer.pull(image).await?;
        steps.push((step, begin.elapsed()));
        Ok::<(), anyhow::Error>(())
    };
    time("nothing there", first).await?;
    if let Some(second) = second {
        time("most layers there", second).await?;
    }
    time("all there", first).await?;
    // The image that pods run is needed on.
    for image in all().filter(|image| *image != bench.pod_image()) {
        peer.remove_image(image).await?;
    }
    bench.settle(peer, &[]).await?;
    Ok(steps)
}
