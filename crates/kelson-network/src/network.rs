//! [`Network`]: which configuration applies, the record first, then the work, and its undoing.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::conf::NetworkConf;
use crate::confdir::ConfDir;
use crate::config::NetworkConfig;
use crate::error::{Error, NotReady, chain};
use crate::external::{self, Programs};
use crate::native::{self, Host, bridge::Gateways, hostlocal, rules::Rules};
use crate::netns;
use crate::plan::{Chain, Native, is_interface_name, plan};
use crate::pod::{Attachment, Netns, Pod, PortMapping};
use crate::record::{Entry, Mode, Record, Records, check_pod_id};

/// The pod network of this machine. Cheap to clone.
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
            host: Host {
                rules: Rules::new(&config.nft_table),
                gateways: Gateways::default(),
            },
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
        let conf = self.0.conf()?;
        let Chain::External { why } = self.0.plan(&conf) else {
            return Ok(());
        };
        let checked = match self.0.programs(&conf, &why) {
            Ok(programs) => programs.status().await,
            Err(missing) => Err(missing),
        };
        checked.map_err(|error| NotReady::new(chain(&error)))
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
        self.0.del_locked(&pod.id, None, guard.clone()).await?;
        let conf = self.0.conf()?;
        match self.0.plan(&conf) {
            Chain::Native(plan) => {
                let inner = Arc::clone(&self.0);
                blocking(move || {
                    let _guard = guard;
                    inner.add_native(&conf, &plan, &pod)
                })
                .await
            }
            Chain::External { why } => self.0.add_external(&conf, &why, pod, guard).await,
        }
    }

    /// Detaches the pod. Idempotent; needs neither the namespace nor the configuration of the
    /// time of `add`. `netns` is for external plugins whose pinned namespace is gone.
    ///
    /// # Errors
    /// [`Error::Incomplete`] with everything that failed: the record stays, so that a later call
    /// can finish.
    pub async fn del(&self, pod_id: &str, netns: Option<Netns>) -> Result<(), Error> {
        check_pod_id(pod_id)?;
        let guard = self.0.lock_pod(pod_id).await;
        self.0.del_locked(pod_id, netns, guard).await
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

impl Inner {
    fn conf(&self) -> Result<Arc<NetworkConf>, NotReady> {
        match (self.conf_dir.current(), &self.fallback) {
            (Err(_), Some(fallback)) => Ok(Arc::clone(fallback)),
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

    fn add_native(
        &self,
        conf: &NetworkConf,
        plan: &Native,
        pod: &Pod,
    ) -> Result<Attachment, Error> {
        let ports = published(plan, pod);
        let veth = veth_name(&pod.id);
        let mode = Mode::Native {
            veth: veth.clone(),
            dir: plan.ipam.dir.clone(),
            ports,
        };
        let record = Record::new(&pod.id, &conf.name, conf.json.clone(), mode);
        let record = self.records.begin(record)?;
        let Mode::Native { ports, .. } = &record.mode else {
            unreachable!("just made")
        };
        let proc_root = &self.config.proc_root;
        match native::attach(&self.host, proc_root, &conf.name, plan, pod, &veth, ports) {
            Ok(attachment) => {
                let mut finished = (*record).clone();
                finished.attachment = Some(attachment.clone());
                self.records.update(finished)?;
                Ok(attachment)
            }
            Err(error) => {
                if let Err(left) = self.del_native(&pod.id) {
                    tracing::warn!(
                        pod_id = pod.id,
                        error = chain(&left),
                        "undoing a failed add"
                    );
                }
                Err(error)
            }
        }
    }

    async fn add_external(
        self: &Arc<Self>,
        conf: &NetworkConf,
        why: &str,
        pod: Pod,
        guard: PodGuard,
    ) -> Result<Attachment, Error> {
        let programs = self.programs(conf, why)?;
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
        match added {
            Ok((result, attachment)) => {
                let mut record = (*record).clone();
                if let Mode::External { result: slot, .. } = &mut record.mode {
                    *slot = Some(result);
                }
                record.attachment = Some(attachment.clone());
                self.records.update(record)?;
                Ok(attachment)
            }
            Err(error) => {
                if let Err(left) = self.del_locked(&pod.id, None, guard).await {
                    tracing::warn!(
                        pod_id = pod.id,
                        error = chain(&left),
                        "undoing a failed add"
                    );
                }
                Err(error)
            }
        }
    }

    /// Pins the namespace and brings its `lo` up.
    async fn prepare_external(&self, pod: &Pod, pinned: PathBuf) -> Result<(), Error> {
        let (proc_root, netns) = (self.config.proc_root.clone(), pod.netns.clone());
        blocking(move || {
            let namespace = netns::open(&proc_root, &netns)?;
            netns::pin(&netns::path(&proc_root, &netns), &pinned)?;
            native::loopback_up(std::os::fd::AsFd::as_fd(&namespace))
        })
        .await
    }

    fn pinned(&self, pod_id: &str) -> PathBuf {
        self.config.netns_dir.join(format!("kelson-{pod_id}"))
    }

    async fn del_locked(
        self: &Arc<Self>,
        pod_id: &str,
        netns: Option<Netns>,
        guard: PodGuard,
    ) -> Result<(), Error> {
        let Some(entry) = self.records.leave(pod_id) else {
            return Ok(());
        };
        match entry {
            Entry::Known { record, .. } if matches!(record.mode, Mode::External { .. }) => {
                self.del_external(&record, netns).await
            }
            Entry::Newer(version) => Err(Error::NewerRecord {
                pod_id: pod_id.to_owned(),
                version,
            }),
            Entry::Known { .. } | Entry::Damaged => {
                let (inner, pod_id) = (Arc::clone(self), pod_id.to_owned());
                blocking(move || {
                    let _guard = guard;
                    inner.del_native(&pod_id)
                })
                .await
            }
        }
    }

    /// Undoes a native attachment, or whatever a damaged record may stand for.
    fn del_native(&self, pod_id: &str) -> Result<(), Error> {
        let Some(entry) = self.records.leave(pod_id) else {
            return Ok(());
        };
        let in_use = |network: &str| self.records.uses(network);
        let failures = match &entry {
            Entry::Known { record, .. } => {
                let Mode::Native { veth, dir, .. } = &record.mode else {
                    return Ok(());
                };
                let addresses: Option<&[IpAddr]> = record.attachment.as_ref().map(|a| &*a.ips);
                let network = Some(record.network.as_str());
                native::detach(&self.host, pod_id, network, veth, dir, addresses, in_use)
            }
            Entry::Damaged | Entry::Newer(_) => {
                let mut failures = Vec::new();
                for dir in self.ipam_dirs() {
                    let veth = veth_name(pod_id);
                    failures.extend(native::detach(
                        &self.host, pod_id, None, &veth, &dir, None, in_use,
                    ));
                }
                failures.extend(netns::unpin(&self.pinned(pod_id)).err());
                failures
            }
        };
        self.finish(pod_id, failures)
    }

    async fn del_external(&self, record: &Record, netns: Option<Netns>) -> Result<(), Error> {
        let Mode::External {
            netns: pinned,
            args,
            capabilities,
            result,
        } = &record.mode
        else {
            return Ok(());
        };
        let mut failures = Vec::new();
        let conf = NetworkConf::from_json(record.conf.clone());
        match &conf {
            Ok(conf) => match self.programs(conf, "it attached the pod") {
                Ok(programs) => {
                    // Without a namespace, plugins free what they keep outside of it.
                    let given = netns.map(|netns| netns::path(&self.config.proc_root, &netns));
                    let mut paths = [Some(pinned.clone()), given].into_iter().flatten();
                    let path = paths.find(|path| path.exists()).unwrap_or_default();
                    let (id, bin_dirs) = (&record.pod_id, &self.config.bin_dirs);
                    let environment = external::environment(id, &path, args, bin_dirs);
                    failures = programs
                        .del(&environment, capabilities, result.as_ref())
                        .await;
                }
                Err(missing) => failures.push(missing),
            },
            Err(mistake) => failures.push(NotReady::new(chain(mistake)).into()),
        }
        if failures.is_empty() {
            failures.extend(netns::unpin(pinned).err());
        }
        self.finish(&record.pod_id, failures)
    }

    fn finish(&self, pod_id: &str, mut failures: Vec<Error>) -> Result<(), Error> {
        if failures.is_empty() {
            failures.extend(self.records.remove(pod_id).err());
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(Error::Incomplete {
            pod_id: pod_id.to_owned(),
            failures,
        })
    }

    /// host-local's directories of every network below the common one.
    fn ipam_dirs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.config.ipam_dir)
            .into_iter()
            .flatten()
            .flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect()
    }

    /// The built-in network's directory belongs to this instance alone, so an address there that
    /// no pod has is left over, whatever became of its record.
    fn free_fallback_addresses(&self, valid: &HashSet<String>) -> Result<(), Error> {
        let Some(fallback) = &self.fallback else {
            return Ok(());
        };
        let dir = self.config.ipam_dir.join(&fallback.name);
        if !dir.exists() {
            return Ok(());
        }
        let locked = hostlocal::lock(&dir)?;
        let recorded: HashSet<String> = self
            .records
            .all()
            .into_iter()
            .map(|(pod_id, _)| pod_id)
            .collect();
        let freed = locked.release_all(|id| valid.contains(id) || recorded.contains(id))?;
        if !freed.is_empty() {
            tracing::info!(addresses = ?freed, "addresses that no pod has were freed");
        }
        Ok(())
    }

    async fn gc_external(&self, valid: &HashSet<String>) -> Result<(), Error> {
        let Ok(conf) = self.conf() else { return Ok(()) };
        match self.plan(&conf) {
            Chain::Native(_) => Ok(()),
            Chain::External { why } => self.programs(&conf, &why)?.gc(valid).await,
        }
    }

    fn destroy_fallback(&self) -> Result<bool, Error> {
        let (Some(conf), Some(fallback)) = (&self.fallback, &self.config.fallback) else {
            return Ok(true);
        };
        if self.records.uses(&conf.name) {
            return Ok(false);
        }
        self.host
            .rules
            .withdraw("", Some(&conf.name), |network| self.records.uses(network))?;
        native::delete_link(&fallback.bridge)?;
        let dir = self.config.ipam_dir.join(&conf.name);
        match fs::remove_dir_all(&dir) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &dir)(source))
            }
            _ => Ok(true),
        }
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

/// The host's end of a pod's interface pair: at most 15 bytes, told apart by the pod id.
fn veth_name(pod_id: &str) -> String {
    format!("veth{}", &pod_id[..pod_id.len().min(11)])
}

#[cfg(test)]
mod tests;
