//! Addresses in host-local's own form on disk, so that the external plugin and this one agree.
//!
//! A directory per network holds a file per address in use, named as the address, with
//! `<container id>\r\n<interface>` in it; `last_reserved_ip.<n>` with the address that set number
//! `n` gave out last; and `lock`, held with flock(2) during every change.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::fs::FlockOperation;

use super::ranges::{Range, RangeSet};
use crate::error::Error;

/// An owner's file is shorter than this: an id of 128 bytes and an interface name.
const MAX_OWNER: u64 = 512;

/// An address that was given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) address: IpNet,
    pub(crate) gateway: IpAddr,
    pub(crate) subnet: IpNet,
}

/// A network's directory, locked until dropped.
pub(crate) struct Locked {
    dir: PathBuf,
    _lock: File,
}

/// Locks a network's directory, which is made if missing.
pub(crate) fn lock(dir: &Path) -> Result<Locked, Error> {
    let path = dir.join("lock");
    let open = || {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&path)
    };
    let lock = match open() {
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            open()
        }
        other => other,
    }
    .map_err(Error::io("open", &path))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .map_err(|errno| Error::io("lock", &path)(errno.into()))?;
    Ok(Locked {
        dir: dir.to_owned(),
        _lock: lock,
    })
}

impl Locked {
    /// Reserves one address of every set for a pod's interface; all or none. `wanted` holds
    /// addresses that were asked for, each for the set that has it.
    pub(crate) fn allocate(
        &self,
        network: &str,
        sets: &[RangeSet],
        wanted: &[IpNet],
        owner: &Owner<'_>,
    ) -> Result<Vec<Lease>, Error> {
        let unknown = wanted
            .iter()
            .find(|net| !sets.iter().any(|s| s.range_of(net.addr()).is_some()));
        if let Some(net) = unknown {
            return Err(Error::AddressUnavailable {
                network: network.into(),
                address: net.addr(),
            });
        }
        let mut leases = Vec::with_capacity(sets.len());
        for (index, set) in sets.iter().enumerate() {
            let asked = wanted
                .iter()
                .map(IpNet::addr)
                .find(|ip| set.range_of(*ip).is_some());
            match self.allocate_from(network, index, set, asked, owner) {
                Ok((ip, range)) => leases.push(Lease {
                    address: range.interface_address(ip),
                    gateway: range.gateway,
                    subnet: range.subnet,
                }),
                Err(error) => {
                    let taken: Vec<IpAddr> =
                        leases.iter().map(|l: &Lease| l.address.addr()).collect();
                    return Err(self.release(&taken, owner).err().unwrap_or(error));
                }
            }
        }
        Ok(leases)
    }

    fn allocate_from<'s>(
        &self,
        network: &str,
        index: usize,
        set: &'s RangeSet,
        asked: Option<IpAddr>,
        owner: &Owner<'_>,
    ) -> Result<(IpAddr, &'s Range), Error> {
        if let Some(ip) = asked {
            let free = self.reserve(ip, owner)?;
            let range = set.range_of(ip).filter(|range| free && range.gateway != ip);
            return range
                .map(|range| (ip, range))
                .ok_or_else(|| Error::AddressUnavailable {
                    network: network.into(),
                    address: ip,
                });
        }
        let last_path = self.dir.join(format!("last_reserved_ip.{index}"));
        let last = fs::read_to_string(&last_path)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let candidates = set.candidates(last);
        let mut in_use: Option<HashSet<IpAddr>> = None;
        for (ip, range) in candidates {
            if in_use.as_ref().is_some_and(|in_use| in_use.contains(&ip)) {
                continue;
            }
            if self.reserve(ip, owner)? {
                let text = ip.to_string();
                fs::write(&last_path, text).map_err(Error::io("write", &last_path))?;
                return Ok((ip, range));
            }
            // The next one is rarely taken; when it is, one listing replaces many attempts.
            if in_use.is_none() {
                in_use = Some(self.in_use()?);
            }
        }
        let ranges = set.to_string();
        Err(Error::Exhausted {
            network: network.into(),
            ranges,
            dir: self.dir.clone(),
        })
    }

    /// Makes the address's file; false when there is one.
    fn reserve(&self, ip: IpAddr, owner: &Owner<'_>) -> Result<bool, Error> {
        let path = self.dir.join(ip.to_string());
        let mut file = match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
        {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(source) => return Err(Error::io("create", &path)(source)),
        };
        file.write_all(owner.text().as_bytes()).map_err(|source| {
            // An address file without its owner could never be released.
            let _ = fs::remove_file(&path);
            Error::io("write", &path)(source)
        })?;
        Ok(true)
    }

    fn in_use(&self) -> Result<HashSet<IpAddr>, Error> {
        Ok(self.files()?.into_iter().map(|(ip, _)| ip).collect())
    }

    fn files(&self) -> Result<Vec<(IpAddr, PathBuf)>, Error> {
        let entries = fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))?;
        let named = entries.filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path))
        });
        Ok(named.collect())
    }

    /// Gives back these addresses where they belong to the owner.
    pub(crate) fn release(&self, addresses: &[IpAddr], owner: &Owner<'_>) -> Result<(), Error> {
        let text = owner.text();
        for ip in addresses {
            let path = self.dir.join(ip.to_string());
            if read_owner(&path).is_some_and(|found| found == text) {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Gives back everything whose container id is not kept. A file without an owner is what a
    /// crash between making and writing it left.
    pub(crate) fn release_all(&self, keep: impl Fn(&str) -> bool) -> Result<Vec<IpAddr>, Error> {
        let mut released = Vec::new();
        for (ip, path) in self.files()? {
            let Some(owner) = read_owner(&path) else {
                continue;
            };
            let id = owner.split(['\r', '\n']).next().unwrap_or_default().trim();
            if id.is_empty() || !keep(id) {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                released.push(ip);
            }
        }
        Ok(released)
    }
}

fn read_owner(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(MAX_OWNER)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

/// Whose address it is.
pub(crate) struct Owner<'a> {
    pub(crate) id: &'a str,
    pub(crate) interface: &'a str,
}

impl Owner<'_> {
    fn text(&self) -> String {
        format!("{}\r\n{}", self.id, self.interface)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ranges::range_sets;
    use super::*;
    use serde_json::json;

    fn sets(ranges: serde_json::Value) -> Vec<RangeSet> {
        let ranges: Vec<Vec<super::super::ranges::RangeConf>> =
            serde_json::from_value(ranges).unwrap();
        range_sets(&ranges).unwrap()
    }

    fn owner(id: &str) -> Owner<'_> {
        Owner {
            id,
            interface: "eth0",
        }
    }

    fn first(locked: &Locked, sets: &[RangeSet], id: &str) -> Result<String, Error> {
        Ok(locked.allocate("n", sets, &[], &owner(id))?[0]
            .address
            .to_string())
    }

    #[test]
    fn addresses_are_files_given_in_turn_until_none_is_left() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("n");
        let sets = sets(json!([[{ "subnet": "10.0.0.0/29", "rangeEnd": "10.0.0.3" }]]));
        let locked = lock(&dir).unwrap();
        assert_eq!(first(&locked, &sets, "a").unwrap(), "10.0.0.2/29");
        assert_eq!(
            fs::read_to_string(dir.join("10.0.0.2")).unwrap(),
            "a\r\neth0"
        );
        assert_eq!(
            fs::read_to_string(dir.join("last_reserved_ip.0")).unwrap(),
            "10.0.0.2"
        );
        assert_eq!(first(&locked, &sets, "b").unwrap(), "10.0.0.3/29");
        let full = first(&locked, &sets, "c").unwrap_err();
        assert!(matches!(full, Error::Exhausted { .. }));
        assert!(full.to_string().contains("10.0.0.1-10.0.0.3"), "{full}");

        let two: IpAddr = "10.0.0.2".parse().unwrap();
        locked.release(&[two], &owner("b")).unwrap();
        assert!(dir.join("10.0.0.2").exists(), "it is not b's");
        locked.release(&[two], &owner("a")).unwrap();
        assert_eq!(first(&locked, &sets, "c").unwrap(), "10.0.0.2/29");
    }

    #[test]
    fn of_two_sets_both_or_none() {
        let temp = tempfile::tempdir().unwrap();
        let sets = sets(json!([
            [{ "subnet": "10.0.0.0/24" }],
            [{ "subnet": "fd00::/126", "rangeStart": "fd00::2", "rangeEnd": "fd00::2" }],
        ]));
        let locked = lock(temp.path()).unwrap();
        let both = locked.allocate("n", &sets, &[], &owner("a")).unwrap();
        assert_eq!(both[1].address.to_string(), "fd00::2/126");
        assert!(locked.allocate("n", &sets, &[], &owner("b")).is_err());
        assert_eq!(locked.in_use().unwrap().len(), 2);
    }

    #[test]
    fn an_address_that_is_asked_for_is_given_or_refused() {
        let temp = tempfile::tempdir().unwrap();
        let sets = sets(json!([[{ "subnet": "10.0.0.0/24" }]]));
        let locked = lock(temp.path()).unwrap();
        let ask = |ip: &str, id: &str| {
            let wanted = [format!("{ip}/24").parse().unwrap()];
            locked
                .allocate("n", &sets, &wanted, &owner(id))
                .map(|l| l[0].address.to_string())
        };
        assert_eq!(ask("10.0.0.77", "a").unwrap(), "10.0.0.77/24");
        assert!(matches!(
            ask("10.0.0.77", "b"),
            Err(Error::AddressUnavailable { .. })
        ));
        assert!(matches!(
            ask("10.9.0.1", "b"),
            Err(Error::AddressUnavailable { .. })
        ));
    }

    #[test]
    fn what_nobody_owns_is_released() {
        let temp = tempfile::tempdir().unwrap();
        let sets = sets(json!([[{ "subnet": "10.0.0.0/24" }]]));
        let locked = lock(temp.path()).unwrap();
        first(&locked, &sets, "a").unwrap();
        first(&locked, &sets, "b").unwrap();
        fs::write(temp.path().join("10.0.0.99"), "").unwrap();
        fs::write(temp.path().join("10.0.0.50"), "other-runtime\neth0").unwrap();
        let released = locked
            .release_all(|id| id == "a" || id == "other-runtime")
            .unwrap();
        assert_eq!(released.len(), 2);
        assert_eq!(locked.in_use().unwrap().len(), 2);
    }

    #[test]
    fn threads_never_get_the_same_address() {
        let temp = tempfile::tempdir().unwrap();
        let sets = sets(json!([[{ "subnet": "10.0.0.0/24" }]]));
        let all: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|t| {
                    let (sets, dir) = (&sets, temp.path());
                    scope.spawn(move || {
                        let take =
                            |n| first(&lock(dir).unwrap(), sets, &format!("{t}-{n}")).unwrap();
                        (0..20).map(take).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 80);
    }
}
