//! Detaching, from the record alone; and what is left over from earlier runs.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Inner, PodGuard, Wait, blocking, veth_name};
use crate::conf::NetworkConf;
use crate::error::{Error, NotReady, chain};
use crate::external;
use crate::native::{self, Traces, hostlocal};
use crate::netns;
use crate::plan::Chain;
use crate::pod::Netns;
use crate::record::{Entry, Mode, Record};

impl Inner {
    /// Detaches a pod whose lock is held.
    pub(super) async fn del_locked(
        self: &Arc<Self>,
        pod_id: &str,
        netns: Option<Netns>,
        guard: PodGuard,
        wait: Wait,
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
                blocking(move || inner.del_native(&pod_id, guard, wait)).await
            }
        }
    }

    /// Undoes a native attachment, or whatever a damaged record may stand for. The interface,
    /// which the kernel takes its time to delete, goes in the background unless waited for; the
    /// record and the pod's lock stay until it is gone.
    pub(super) fn del_native(
        self: &Arc<Self>,
        pod_id: &str,
        guard: PodGuard,
        wait: Wait,
    ) -> Result<(), Error> {
        let Some(entry) = self.records.leave(pod_id) else {
            return Ok(());
        };
        let (veth, failures, wait) = match &entry {
            Entry::Known { record, .. } => {
                let Mode::Native { veth, dir, .. } = &record.mode else {
                    return Ok(());
                };
                let addresses = record
                    .attachment
                    .as_ref()
                    .map(|attachment| &*attachment.ips);
                let network = Some(record.network.as_str());
                (
                    veth.clone(),
                    self.detach(pod_id, network, veth, dir, addresses),
                    wait,
                )
            }
            Entry::Damaged | Entry::Newer(_) => {
                let veth = veth_name(pod_id);
                let mut failures = Vec::new();
                for dir in self.ipam_dirs() {
                    failures.extend(self.detach(pod_id, None, &veth, &dir, None));
                }
                failures.extend(netns::unpin(&self.pinned(pod_id)).err());
                (veth, failures, Wait::Yes)
            }
        };
        if !failures.is_empty() {
            return Err(incomplete(pod_id, failures));
        }
        match wait {
            Wait::Yes => self.bury(pod_id, &veth),
            Wait::No => {
                let (inner, pod_id) = (Arc::clone(self), pod_id.to_owned());
                tokio::task::spawn_blocking(move || {
                    let _guard = guard;
                    if let Err(error) = inner.bury(&pod_id, &veth) {
                        tracing::warn!(pod_id, error = chain(&error), "network left over");
                    }
                });
                Ok(())
            }
        }
    }

    fn detach(
        &self,
        pod_id: &str,
        network: Option<&str>,
        veth: &str,
        dir: &Path,
        addresses: Option<&[IpAddr]>,
    ) -> Vec<Error> {
        let traces = Traces {
            pod_id,
            network,
            veth,
            dir,
            addresses,
        };
        native::detach(&self.host, &traces, |network| self.records.uses(network))
    }

    /// The last of a native attachment: the interface and the record.
    fn bury(&self, pod_id: &str, veth: &str) -> Result<(), Error> {
        native::delete_link(&self.host, veth)
            .and_then(|()| self.records.remove(pod_id))
            .map_err(|error| incomplete(pod_id, vec![error]))
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
        if failures.is_empty() {
            failures.extend(self.records.remove(&record.pod_id).err());
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(incomplete(&record.pod_id, failures))
        }
    }

    /// Waits until nothing is being removed any more.
    pub(super) async fn settle(&self) {
        for (pod_id, entry) in self.records.all() {
            if matches!(entry, Entry::Known { leaving: true, .. }) {
                drop(self.lock_pod(&pod_id).await);
            }
        }
    }

    /// host-local's directories of every network below the common one; one that does not exist
    /// when there is none.
    fn ipam_dirs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.config.ipam_dir)
            .into_iter()
            .flatten()
            .flatten();
        let mut dirs: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect();
        if dirs.is_empty() {
            dirs.push(PathBuf::new());
        }
        dirs
    }

    /// The built-in network's directory belongs to this instance alone, so an address there that
    /// no pod has is left over, whatever became of its record.
    pub(super) fn free_fallback_addresses(&self, valid: &HashSet<String>) -> Result<(), Error> {
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

    pub(super) async fn gc_external(&self, valid: &HashSet<String>) -> Result<(), Error> {
        let Ok(conf) = self.conf(false) else {
            return Ok(());
        };
        match self.plan(&conf) {
            Chain::Native(_) => Ok(()),
            Chain::External { why } => self.programs(&conf, &why)?.gc(valid).await,
        }
    }

    pub(super) fn destroy_fallback(&self) -> Result<bool, Error> {
        let (Some(conf), Some(fallback)) = (&self.fallback, &self.config.fallback) else {
            return Ok(true);
        };
        if self.records.uses(&conf.name) {
            return Ok(false);
        }
        native::remove_rules(&self.host, &conf.name, |network| self.records.uses(network))?;
        native::delete_link(&self.host, &fallback.bridge)?;
        let dir = self.config.ipam_dir.join(&conf.name);
        match fs::remove_dir_all(&dir) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &dir)(source))
            }
            _ => Ok(true),
        }
    }
}

fn incomplete(pod_id: &str, failures: Vec<Error>) -> Error {
    Error::Incomplete {
        pod_id: pod_id.to_owned(),
        failures,
    }
}
