//! The traits of [`outside`](crate::outside) on the real crates.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kelson_cgroup::{Cgroup, Hierarchy, Stats};
use kelson_image::Images;
use kelson_network::{Attachment, Netns, Network};
use kelson_shim::client::{self, ExecResult, Session, ShimError, ShimEvent, Zygote};
use kelson_shim::ids::ContainerId;
use kelson_shim::proto::{
    AttachRequest, ExecRequest, Family, PodSetup, PodState, StartRequest, Started,
};
use rustix::process::{Pid, PidfdFlags};

use crate::outside::{
    Cgroups, Forked, Found, ImageFacts, ImageSource, PodNetwork, Prepared, Promise, Shim,
    ShimEvents, Shims,
};
use crate::spec::process::ImageProcess;

impl Shims for Zygote {
    fn fork(&self, setup: PodSetup, deadline: Duration) -> Promise<'_, Result<Forked, ShimError>> {
        Box::pin(async move {
            let forked = self.fork_shim(&setup, deadline).await?;
            Ok(Forked {
                ready: forked.ready,
                events: Box::new(forked.events),
            })
        })
    }

    fn connect(&self, dir: PathBuf, deadline: Duration) -> Promise<'_, Result<Found, ShimError>> {
        Box::pin(async move {
            let (_, state, events) = client::Shim::connect(dir, deadline).await?;
            Ok(Found {
                state,
                events: Box::new(events),
            })
        })
    }

    fn at(&self, dir: PathBuf) -> Arc<dyn Shim> {
        Arc::new(client::Shim::new(dir))
    }
}

impl Shim for client::Shim {
    fn state(&self, deadline: Duration) -> Promise<'_, Result<PodState, ShimError>> {
        Box::pin(self.state(deadline))
    }

    fn start(
        &self,
        request: StartRequest,
        deadline: Duration,
    ) -> Promise<'_, Result<Started, ShimError>> {
        Box::pin(self.start(request, deadline))
    }

    fn signal(
        &self,
        container: ContainerId,
        signal: i32,
        deadline: Duration,
    ) -> Promise<'_, Result<(), ShimError>> {
        Box::pin(self.signal(container, signal, false, deadline))
    }

    fn reopen(
        &self,
        container: ContainerId,
        deadline: Duration,
    ) -> Promise<'_, Result<(), ShimError>> {
        Box::pin(self.reopen(container, deadline))
    }

    fn forget(
        &self,
        container: ContainerId,
        deadline: Duration,
    ) -> Promise<'_, Result<(), ShimError>> {
        Box::pin(self.forget(container, deadline))
    }

    fn shutdown(&self, deadline: Duration) -> Promise<'_, Result<(), ShimError>> {
        Box::pin(self.shutdown(deadline))
    }

    fn session(
        &self,
        request: ExecRequest,
        deadline: Duration,
    ) -> Promise<'_, Result<Session, ShimError>> {
        Box::pin(self.exec(request, deadline))
    }

    fn attach(
        &self,
        request: AttachRequest,
        deadline: Duration,
    ) -> Promise<'_, Result<Session, ShimError>> {
        Box::pin(self.attach(request, deadline))
    }

    fn socket(
        &self,
        family: Family,
        deadline: Duration,
    ) -> Promise<'_, Result<OwnedFd, ShimError>> {
        Box::pin(self.socket(family, deadline))
    }

    fn exec(
        &self,
        request: ExecRequest,
        limit: usize,
        start: Duration,
        deadline: Duration,
    ) -> Promise<'_, Result<ExecResult, ShimError>> {
        Box::pin(async move {
            self.exec(request, start)
                .await?
                .collect(limit, deadline)
                .await
        })
    }
}

impl ShimEvents for client::ShimEvents {
    fn next(&mut self) -> Promise<'_, ShimEvent> {
        Box::pin(self.next())
    }
}

impl PodNetwork for Network {
    fn add(
        &self,
        pod: kelson_network::Pod,
    ) -> Promise<'_, Result<Attachment, kelson_network::Error>> {
        Box::pin(self.add(pod))
    }

    fn del(
        &self,
        pod: String,
        shim: Option<u32>,
    ) -> Promise<'_, Result<(), kelson_network::Error>> {
        Box::pin(async move { self.del(&pod, shim.map(Netns::Pid)).await })
    }

    fn recorded(&self) -> Vec<String> {
        self.records()
            .into_iter()
            .map(|record| record.pod_id)
            .collect()
    }
}

impl Cgroups for Hierarchy {
    fn create(&self, path: &str) -> kelson_cgroup::Result<()> {
        Cgroup::new(self, path)?.create()
    }

    fn prepare(
        &self,
        _: &str,
        _: &kelson_cgroup::Resources,
    ) -> kelson_cgroup::Result<Option<Prepared>> {
        Ok(None)
    }

    fn kill(&self, path: &str, timeout: Duration) -> kelson_cgroup::Result<()> {
        let cgroup = Cgroup::new(self, path)?;
        if cgroup.exists() {
            cgroup.kill(timeout)
        } else {
            Ok(())
        }
    }

    fn populated(&self, path: &str) -> kelson_cgroup::Result<bool> {
        Cgroup::new(self, path)?.populated()
    }

    fn remove(&self, path: &str) -> kelson_cgroup::Result<()> {
        Cgroup::new(self, path)?.remove()
    }

    fn stats(&self, path: &str) -> kelson_cgroup::Result<Option<Stats>> {
        if_there(Cgroup::new(self, path)?.stats())
    }

    fn usage(&self, path: &str) -> kelson_cgroup::Result<Option<Stats>> {
        if_there(Cgroup::new(self, path)?.usage())
    }

    fn apply(&self, path: &str, limits: &kelson_cgroup::Resources) -> kelson_cgroup::Result<()> {
        Cgroup::new(self, path)?.apply(limits)
    }

    fn pids(&self, path: &str) -> kelson_cgroup::Result<Vec<u32>> {
        Cgroup::new(self, path)?.pids()
    }

    fn oom_kills(&self, path: &str) -> kelson_cgroup::Result<u64> {
        Cgroup::new(self, path)?.oom_kills()
    }

    fn signal(&self, path: &str, pid: u32, signal: i32) -> kelson_cgroup::Result<()> {
        let cgroup = Cgroup::new(self, path)?;
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(process) = process else {
            return Ok(());
        };
        let Ok(pidfd) = rustix::process::pidfd_open(process, PidfdFlags::empty()) else {
            return Ok(());
        };
        // The number may have been given to another process before the descriptor was opened; it cannot
        // be given away after.
        if cgroup.pids()?.contains(&pid) {
            // A process that is gone needs no signal.
            let _ = kelson_sys::process::pidfd_send_signal(pidfd.as_fd(), signal);
        }
        Ok(())
    }
}

fn if_there(stats: kelson_cgroup::Result<Stats>) -> kelson_cgroup::Result<Option<Stats>> {
    match stats {
        Err(error) if error.is_not_found() => Ok(None),
        other => other.map(Some),
    }
}

impl ImageSource for Images {
    fn find(&self, name: &str) -> Option<ImageFacts> {
        let held = self.hold(name)?;
        let image = Arc::clone(&held.image);
        let config = image.config.config().clone().unwrap_or_default();
        let id = image.id.to_string();
        Some(ImageFacts {
            reference: image.digests.first().cloned().unwrap_or_else(|| id.clone()),
            id,
            chain: image.chain.clone(),
            user: config.user().clone().unwrap_or_default(),
            process: ImageProcess {
                entrypoint: config.entrypoint().clone().unwrap_or_default(),
                cmd: config.cmd().clone().unwrap_or_default(),
                env: config.env().clone().unwrap_or_default(),
                working_dir: config.working_dir().clone().unwrap_or_default(),
            },
            volumes: config.volumes().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone().unwrap_or_default(),
            _hold: Box::new(held),
        })
    }
}
