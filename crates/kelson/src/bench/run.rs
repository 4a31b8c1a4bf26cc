//! The course of a run, and what its sections share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kelson_cgroup::Cgroup;

use super::images::Images;
use super::peer::Peer;
use super::pod::{self, Network, Up};
use super::processes::Processes;
use super::report::{Contender, Report};
use super::{Bench, Section, fleet, log, pull, runtime, stream};

/// A runtime is at rest when it uses less than this in each [`PERIOD`].
const REST: Duration = Duration::from_millis(3);
const PERIOD: Duration = Duration::from_millis(100);
/// How long it is waited for rest; some runtimes always do something.
const PATIENCE: Duration = Duration::from_secs(10);
/// Size of a page that is touched; smaller ones do not exist on Linux.
const PAGE: usize = 4096;

impl Bench {
    pub(super) async fn run(self: &Arc<Self>) -> Result<Report> {
        let sections = self.sections();
        self.prepare(&sections).await?;
        if self.peers.is_empty() {
            return runtime::run(self).await;
        }
        let contenders = self.peers.iter().map(|peer| Contender {
            name: peer.name.clone(),
            version: peer.version.clone(),
            place: peer.client.endpoint().to_string(),
        });
        let mut report = Report::new(&self.directory, contenders.collect());
        for peer in &self.peers {
            let image = self.pod_image();
            self.progress(&format!("{}: pull {image}", peer.name));
            peer.pull(&image).await.with_context(|| peer.name.clone())?;
            // The first pod pays for caches and loaded programs.
            pod::up_and_down(self, peer, Network::Pod, "warm-up")
                .await
                .with_context(|| peer.name.clone())?;
        }
        for section in sections {
            report.section(match section {
                Section::Pull => "Pull and unpack",
                Section::Pod => "Pods on the pod network, one after another",
                Section::Host => "Pods on the host's network, one after another",
                Section::Fleet => "Many pods",
                Section::Log => "Output of a container",
                Section::Stream => "Exec and port-forward",
            });
            match section {
                Section::Pull => pull::run(self, &mut report).await,
                Section::Pod => pod::run(self, Network::Pod, &mut report).await,
                Section::Host => pod::run(self, Network::Host, &mut report).await,
                Section::Fleet => fleet::run(self, &mut report).await,
                Section::Log => log::run(self, &mut report).await?,
                Section::Stream => stream::run(self, &mut report).await?,
            }
        }
        Ok(report)
    }

    fn sections(&self) -> Vec<Section> {
        let all = [
            Section::Pull,
            Section::Pod,
            Section::Host,
            Section::Fleet,
            Section::Log,
            Section::Stream,
        ];
        let only = &self.args.only;
        let wanted = |section: &Section| only.is_empty() || only.contains(section);
        all.into_iter().filter(wanted).collect()
    }

    /// Makes the images and touches memory.
    async fn prepare(self: &Arc<Self>, sections: &[Section]) -> Result<()> {
        let pulls = !self.peers.is_empty()
            && sections.contains(&Section::Pull)
            && self.args.pull_image.is_none()
            && self.args.image.is_none();
        let pull_bytes = if pulls {
            u64::from(self.args.pull_size) << 20
        } else {
            0
        };
        if !self.peers.is_empty() && self.args.image.is_none() {
            self.progress("make the images");
            let images = tokio::task::spawn_blocking(move || Images::serve(pull_bytes));
            let images = images.await.context("making the images was cut off")??;
            // Nothing was there before.
            let _ = self.images.set(images);
        }
        let log = u64::from(self.args.log_size) << 20;
        let wanted = match self.args.warm {
            Some(mebibytes) => u64::from(mebibytes) << 20,
            None => (pull_bytes * 3 + log * 2 + (256 << 20)).min(free_memory() / 2),
        };
        self.progress(&format!("touch {} MiB of memory", wanted >> 20));
        tokio::task::spawn_blocking(move || touch(usize::try_from(wanted).unwrap_or(0)))
            .await
            .context("touching memory was cut off")
    }

    /// The image that pods run.
    pub(super) fn pod_image(&self) -> String {
        let made = || self.images.get().map(Images::programs);
        self.args.image.clone().or_else(made).unwrap_or_default()
    }

    /// The place of a peer among the others.
    pub(super) fn index(&self, peer: &Peer) -> Option<usize> {
        self.peers
            .iter()
            .position(|other| std::ptr::eq(&**other, peer))
    }

    /// The cgroup above those of all pods.
    pub(super) fn cgroup(&self) -> Result<Option<Cgroup>> {
        let path = format!("/kelson-bench-{}", self.id);
        let cgroup = self
            .cgroups
            .as_ref()
            .map(|all| Cgroup::new(all, &path))
            .transpose();
        cgroup.context("name the cgroup of the pods")
    }

    /// The cgroup for a pod; none for a runtime that has to be left to choose it.
    pub(super) fn pod_cgroup(&self, peer: &Peer, name: &str) -> Result<Option<Cgroup>> {
        let parent = self.cgroup()?.filter(|_| peer.cgroupfs);
        let child = parent.map(|parent| parent.child(&format!("{}-{name}", peer.name)));
        child.transpose().context("name the cgroup of a pod")
    }

    /// Waits until a runtime has done what it does in the background, so that one does not pay for the
    /// other.
    pub(super) async fn settle(&self, peer: &Peer, fleet: &[Up]) -> Result<()> {
        let begin = Instant::now();
        let processes = Processes::of(peer.daemon(), fleet);
        let mut before = processes.processor_nanoseconds();
        loop {
            tokio::time::sleep(PERIOD).await;
            let now = processes.processor_nanoseconds();
            let used = Duration::from_nanos(now.saturating_sub(before));
            if used < REST || begin.elapsed() > PATIENCE {
                return Ok(());
            }
            before = now;
        }
    }
}

fn free_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes =
        line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

/// Uses memory once and gives it back: where a virtual machine's memory is backed lazily, the first use of a
/// page costs far more than any later one.
fn touch(bytes: usize) {
    let mut memory = vec![0_u8; bytes];
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_touched_and_given_back() {
        let before = free_memory();
        assert!(before > 64 << 20);
        touch(32 << 20);
        touch(0);
    }
}
