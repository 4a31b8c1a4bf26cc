//! [`Network`]: which configuration applies, and one operation at a time for each pod.

mod add;
mod remove;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::conf::NetworkConf;
use crate::confdir::ConfDir;
use crate::config::NetworkConfig;
use crate::error::{Error, NotReady, chain};
use crate::external::Programs;
use crate::native::Host;
use crate::plan::{Chain, is_interface_name, plan};
use crate::pod::{Attachment, Netns, Pod};
use crate::record::{Entry, Records, check_pod_id};

/// The pod network of this machine. Cheap to clone.
///
/// Every call must come from threads of one and the same network namespace: the machine's.
#[derive(Debug, Clone)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: NetworkConfig,
    conf_dir: ConfDir,
    fallback: Option<Arc<NetworkConf>>,
    records: Records,
    host: Host,
    /// One lock per pod that has an operation under way.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// What the record of an attachment tells at start-up.
#[derive(Debug, Clone)]
pub struct RecordSummary {
    /// The pod sandbox id.
    pub pod_id: String,
    /// The network's name; empty when the record cannot be read.
    pub network: String,
    /// The result, or `None` when the attachment was never finished.
    pub attachment: Option<Attachment>,
}

impl Network {
    /// Reads the records in `cache_dir`; reads no configuration yet and touches no interface.
    ///
    /// # Errors
    /// A directory that cannot be read or made, or a fallback network that makes no sense.
    pub fn open(config: NetworkConfig) -> Result<Self, Error> {
        let fallback = config.fallback.as_ref().map(|fallback| {
            if !is_interface_name(&fallback.bridge) {
                let value = fallback.bridge.clone();
                return Err(Error::Value {
                    what: "name of the built-in network's bridge",
                    value,
                });
            }
            let conf = NetworkConf::from_fallback(fallback)
                .map_err(|mistake| NotReady::new(format!("built-in network: {mistake}")))?;
            match plan(&conf, true, &config.ipam_dir) {
                Chain::Native(_) => Ok(Arc::new(conf)),
                Chain::External { why } => {
                    Err(NotReady::new(format!("built-in network: {why}")).into())
                }
            }
        });
        Ok(Self(Arc::new(Inner {
            conf_dir: ConfDir::new(&config.conf_dir),
            fallback: fallback.transpose()?,
            records: Records::open(&config.cache_dir)?,
            host: Host::new(&config.nft_table),
            busy: Mutex::default(),
            config,
        })))
    }

    /// Whether pods can be attached now. Rereads what changed in `conf_dir`; looks for the
    /// programs of external chains and runs their STATUS where the version has it.
    ///
    /// # Errors
    /// The reason and message for the CRI's `NetworkReady` condition.
    pub async fn status(&self) -> Result<(), NotReady> {
        let conf = self.0.conf(false)?;
        let Chain::External { why } = self.0.plan(&conf) else {
            return Ok(());
        };
        let checked = match self.0.programs(&conf, &why) {
            Ok(programs) => programs.status().await,
            Err(missing) => Err(missing),
        };
        checked.map_err(|error| NotReady::new(chain(&error)))
    }

    /// The settings it was opened with.
    pub(crate) fn config(&self) -> &NetworkConfig {
        &self.0.config
    }

    /// Whether there is a usable configuration.
    pub(crate) fn is_configured(&self) -> bool {
        self.0.conf(false).is_ok()
    }

    /// Attaches the pod: `lo` up, `eth0` made and addressed, ports published. On an error
    /// everything is undone; what cannot be undone keeps its record for [`Network::del`].
    ///
    /// What an earlier, unfinished attempt for the same id left is removed first.
    ///
    /// # Errors
    /// No usable configuration, no free address, a taken host port, a plugin or kernel that
    /// refuses.
    pub async fn add(&self, pod: Pod) -> Result<Attachment, Error> {
        check_pod_id(&pod.id)?;
        let guard = self.0.lock_pod(&pod.id).await;
        self.0
            .del_locked(&pod.id, None, guard.clone(), Wait::Yes)
            .await?;
        let conf = self.0.conf(pod.fallback)?;
        match self.0.plan(&conf) {
            Chain::Native(plan) => {
                let inner = Arc::clone(&self.0);
                blocking(move || inner.add_native(&conf, &plan, &pod, guard)).await
            }
            Chain::External { why } => self.0.add_external(&conf, &why, pod, guard).await,
        }
    }

    /// Detaches the pod: ports and addresses are free when it returns, and the pod is cut off.
    /// Idempotent; needs neither the namespace nor the configuration of the time of `add`.
    /// `netns` is for external plugins whose pinned namespace is gone.
    ///
    /// # Errors
    /// [`Error::Incomplete`] with everything that failed: the record stays, so that a later call
    /// can finish.
    pub async fn del(&self, pod_id: &str, netns: Option<Netns>) -> Result<(), Error> {
        check_pod_id(pod_id)?;
        let guard = self.0.lock_pod(pod_id).await;
        self.0.del_locked(pod_id, netns, guard, Wait::No).await
    }

    /// Waits for the interfaces of detached pods to be gone: [`Network::del`] cuts them off the
    /// bridge and leaves their deletion, some 20 ms, to the background.
    pub async fn settle(&self) {
        self.0.settle().await;
    }

    /// Every attachment that has a record, finished or not, by pod id.
    #[must_use]
    pub fn records(&self) -> Vec<RecordSummary> {
        let summary = |(pod_id, entry)| match entry {
            Entry::Known { record, .. } => RecordSummary {
                pod_id,
                network: record.network.clone(),
                attachment: record.attachment.clone(),
            },
            Entry::Damaged | Entry::Newer(_) => RecordSummary {
                pod_id,
                network: String::new(),
                attachment: None,
            },
        };
        self.0.records.all().into_iter().map(summary).collect()
    }

    /// Detaches every recorded pod that is not in `valid`, frees the built-in network's addresses
    /// that belong to none, and runs GC of external plugins where the version has it. Returns the
    /// ids that were detached. Failures are logged and keep their records.
    pub async fn gc(&self, valid: &HashSet<String>) -> Vec<String> {
        let mut detached = Vec::new();
        for (pod_id, _) in self.0.records.all() {
            if valid.contains(&pod_id) {
                continue;
            }
            match self.del(&pod_id, None).await {
                Ok(()) => detached.push(pod_id),
                Err(error) => tracing::warn!(pod_id, error = chain(&error), "network left over"),
            }
        }
        if let Err(error) = self.0.free_fallback_addresses(valid) {
            tracing::warn!(
                error = chain(&error),
                "addresses of the built-in network left over"
            );
        }
        if let Err(error) = self.0.gc_external(valid).await {
            tracing::warn!(error = chain(&error), "GC of network plugins");
        }
        detached
    }

    /// Removes the built-in network's bridge, rules and address directory if no pod uses it.
    /// Returns false when one still does.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn destroy_fallback(&self) -> Result<bool, Error> {
        self.settle().await;
        let inner = Arc::clone(&self.0);
        blocking(move || inner.destroy_fallback()).await
    }
}

/// Runs synchronous work away from the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(Error::kernel("finish a task", cancelled.into())),
        },
    }
}

/// Held during an operation on a pod, also by work that outlives a dropped future.
type PodGuard = Arc<OwnedMutexGuard<()>>;

/// Whether a removal may leave the deletion of the interface to the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Yes,
    No,
}

impl Inner {
    /// The network for a pod, which may have asked for the built-in one.
    fn conf(&self, asked: bool) -> Result<Arc<NetworkConf>, NotReady> {
        let usable = asked || self.config.fallback_for_all;
        match (self.conf_dir.current(), &self.fallback) {
            (Err(_), Some(fallback)) if usable => Ok(Arc::clone(fallback)),
            (current, _) => current,
        }
    }

    fn plan(&self, conf: &NetworkConf) -> Chain {
        let native = self.config.native || self.is_fallback(conf);
        plan(conf, native, &self.config.ipam_dir)
    }

    fn is_fallback(&self, conf: &NetworkConf) -> bool {
        self.fallback
            .as_ref()
            .is_some_and(|fallback| **fallback == *conf)
    }

    fn programs<'a>(&'a self, conf: &'a NetworkConf, why: &str) -> Result<Programs<'a>, Error> {
        Programs::find(conf, &self.config.bin_dirs, self.config.plugin_timeout, why)
    }

    async fn lock_pod(&self, pod_id: &str) -> PodGuard {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(busy.entry(pod_id.to_owned()).or_default())
        };
        Arc::new(lock.lock_owned().await)
    }

    fn pinned(&self, pod_id: &str) -> PathBuf {
        self.config.netns_dir.join(format!("kelson-{pod_id}"))
    }
}

/// The host's end of a pod's interface pair: at most 15 bytes, told apart by the pod id.
fn veth_name(pod_id: &str) -> String {
    format!("veth{}", &pod_id[..pod_id.len().min(11)])
}

#[cfg(test)]
mod tests;
