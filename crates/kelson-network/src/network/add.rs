//! Attaching: the record first, then the work; undone at once when it fails.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Inner, PodGuard, Wait, blocking, veth_name};
use crate::conf::NetworkConf;
use crate::error::{Error, chain};
use crate::external;
use crate::native;
use crate::netns;
use crate::plan::Native;
use crate::pod::{Attachment, Pod, PortMapping};
use crate::record::{Mode, Record};

impl Inner {
    /// Attaches a pod in this process.
    pub(super) fn add_native(
        self: &Arc<Self>,
        conf: &NetworkConf,
        plan: &Native,
        pod: &Pod,
        guard: PodGuard,
    ) -> Result<Attachment, Error> {
        let ports = published(plan, pod);
        warn_of_no_limits(conf, pod);
        let veth = veth_name(&pod.id);
        let (dir, recorded) = (plan.ipam.dir.clone(), ports.clone());
        let mode = Mode::Native {
            veth: veth.clone(),
            dir,
            ports: recorded,
        };
        let record = Record::new(&pod.id, &conf.name, conf.json.clone(), mode);
        let record = self.records.begin(record)?;
        let proc_root = &self.config.proc_root;
        let attached = native::attach(&self.host, proc_root, &conf.name, plan, pod, &veth, &ports);
        let finished = attached.and_then(|attachment| {
            let mut record = (*record).clone();
            record.attachment = Some(attachment.clone());
            self.records.update(record)?;
            Ok(attachment)
        });
        finished.inspect_err(|_| {
            if let Err(left) = self.del_native(&pod.id, guard, Wait::Yes) {
                tracing::warn!(
                    pod_id = pod.id,
                    error = chain(&left),
                    "undoing a failed add"
                );
            }
        })
    }

    /// Attaches a pod by programs.
    pub(super) async fn add_external(
        self: &Arc<Self>,
        conf: &NetworkConf,
        why: &str,
        pod: Pod,
        guard: PodGuard,
    ) -> Result<Attachment, Error> {
        let programs = self.programs(conf, why)?;
        warn_of_no_limits(conf, &pod);
        let netns = self.pinned(&pod.id);
        let (args, capabilities) = (external::args(&pod)?, external::capabilities(&pod));
        let mode = Mode::External {
            netns: netns.clone(),
            args: args.clone(),
            capabilities: capabilities.clone(),
            result: None,
        };
        let record = Record::new(&pod.id, &conf.name, conf.json.clone(), mode);
        let record = self.records.begin(record)?;

        let environment = external::environment(&pod.id, &netns, &args, &self.config.bin_dirs);
        let added = match self.prepare_external(&pod, netns).await {
            Ok(()) => programs.add(&environment, &capabilities).await,
            Err(error) => Err(error),
        };
        let finished = added.and_then(|(result, attachment)| {
            let mut record = (*record).clone();
            if let Mode::External { result: slot, .. } = &mut record.mode {
                *slot = Some(result);
            }
            record.attachment = Some(attachment.clone());
            self.records.update(record)?;
            Ok(attachment)
        });
        if finished.is_err()
            && let Err(left) = self.del_locked(&pod.id, None, guard, Wait::Yes).await
        {
            tracing::warn!(
                pod_id = pod.id,
                error = chain(&left),
                "undoing a failed add"
            );
        }
        finished
    }

    /// Pins the namespace and brings its `lo` up.
    async fn prepare_external(&self, pod: &Pod, pinned: PathBuf) -> Result<(), Error> {
        let (proc_root, netns) = (self.config.proc_root.clone(), pod.netns.clone());
        blocking(move || {
            let namespace = netns::open(&proc_root, &netns)?;
            netns::pin(&netns::path(&proc_root, &netns), &pinned)?;
            native::loopback_up(namespace.as_fd())
        })
        .await
    }
}

/// Traffic is limited by plugins that say they can; a network may have none.
fn warn_of_no_limits(conf: &NetworkConf, pod: &Pod) {
    let limited = conf.plugins.iter().any(|plugin| plugin.wants("bandwidth"));
    if pod.bandwidth.is_some() && !limited {
        tracing::warn!(
            pod_id = pod.id,
            network = conf.name,
            "traffic not limited: the network has no plugin with the capability bandwidth"
        );
    }
}

/// The ports that will be published: none without a portmap in the chain.
fn published(plan: &Native, pod: &Pod) -> Vec<PortMapping> {
    let ports: Vec<_> = pod
        .ports
        .iter()
        .filter(|port| port.host_port != 0)
        .cloned()
        .collect();
    if plan.portmap.is_none() && !ports.is_empty() {
        tracing::warn!(
            pod_id = pod.id,
            "host ports not published: the network has no portmap"
        );
        return Vec::new();
    }
    ports
}
