//! Making a pod: the intent, then shim, network, cgroup and files at the same time, then one commit.
//! Whatever fails, everything is undone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use kelson_network::{Netns, Pod as NetworkPod};
use kelson_shim::ids::PodId;
use kelson_shim::proto::{Namespace, PodNamespaces, PodSetup, Ready, UserNamespace};
use kelson_store::Batch;

use tracing::{Instrument as _, debug_span};

use super::down;
use crate::bandwidth;
use crate::config::{IdMapping, NETWORK_FALLBACK, NamespaceMode, PodConfig, Protocol};
use crate::error::{ErrorKind, PodError};
use crate::files;
use crate::janitor::{self, Debt};
use crate::outside::{Forked, ShimEvents};
use crate::record::{PodPhase, PodRecord};
use crate::world::{World, hostname};

/// Kernel parameters by which every user may bind every port and send pings, as with the field's runtimes.
const UNPRIVILEGED: &[(&str, &str)] = &[
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];
/// The one of them that names groups.
const PING: &str = "net.ipv4.ping_group_range";

/// A pod that runs.
pub(crate) struct Up {
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) ready: Ready,
    pub(crate) events: Box<dyn ShimEvents>,
}

/// Makes the pod.
pub(crate) async fn run(
    world: Arc<World>,
    id: PodId,
    config: Arc<PodConfig>,
    created_at: i64,
) -> Result<Up, PodError> {
    let record = PodRecord {
        config: PodConfig::clone(&config),
        created_at,
        boot: world.boot.clone(),
        phase: PodPhase::Starting,
    };
    save(&world, &id, &record).await?;
    let made = make(&world, &id, &config).await;
    let result = match made {
        Ok(up) => {
            let phase = PodPhase::Ready {
                ips: up.ips.clone(),
                shim_pid: up.ready.pid,
                init_pid: up.ready.init_pid,
            };
            save(&world, &id, &PodRecord { phase, ..record })
                .await
                .map(|()| up)
        }
        Err(error) => Err(error),
    };
    if result.is_err() {
        undo(&world, &id, &config).await;
    }
    result
}

/// Undoes a pod that was not finished, and forgets the intent when nothing is left. What resists goes to
/// the janitor, and the intent stays until it is gone.
pub(crate) async fn undo(world: &Arc<World>, id: &PodId, config: &PodConfig) {
    let mut debts = down::take_down(world, id, config, None).await;
    let dir = world.pod_dir(id);
    if let Err(error) = down::remove_dir(world, &dir).await {
        tracing::warn!(pod = %id, error = %crate::error::chain(&error), "a pod's directory stays for now");
        debts.push(Debt::Directory(dir));
    }
    if !debts.is_empty() {
        janitor::owe(world, Debt::Record(*id, debts));
        return;
    }
    let mut batch = Batch::new();
    batch.delete::<PodRecord>(id.as_str());
    // A failure is logged, and the next start finds the intent again.
    let _ = world.journal.commit(batch).await;
}

async fn save(world: &Arc<World>, id: &PodId, record: &PodRecord) -> Result<(), PodError> {
    let mut batch = Batch::new();
    batch
        .put(id.as_str(), record)
        .map_err(|error| PodError::step("save the pod", error))?;
    world
        .journal
        .commit(batch)
        .await
        .map_err(|error| PodError::Step {
            step: "save the pod",
            source: error,
        })
}

async fn make(world: &Arc<World>, id: &PodId, config: &Arc<PodConfig>) -> Result<Up, PodError> {
    let name = hostname(id, config);
    let dir = world.pod_dir(id);
    files::make_dir(&dir).map_err(|error| PodError::step("make the pod's directory", error))?;
    let (local, shim) = tokio::join!(
        make_local(world, id, config, &name),
        make_shim(world, id, config, &name),
    );
    let (forked, ips) = shim?;
    local?;
    let files = world.pod_files(id, config);
    let hosts = &world.config.host_hosts;
    files::write_hosts(&files, config, &name, &ips, hosts)
        .map_err(|error| PodError::step("write the pod's hosts file", error))?;
    if let Some(label) = world.selinux.of_pod_files(config) {
        let all = [
            &files.resolv_conf,
            &files.hosts,
            &files.hostname,
            &files.shm,
        ];
        let all = all.map(PathBuf::as_path);
        let labelled = world.selinux.set(&all, &label);
        labelled.map_err(|error| PodError::step("label the pod's files", error))?;
    }
    Ok(Up {
        ips,
        ready: forked.ready,
        events: forked.events,
    })
}

/// The pod's files, and its cgroup when that is Kelson's own.
async fn make_local(
    world: &Arc<World>,
    id: &PodId,
    config: &Arc<PodConfig>,
    name: &str,
) -> Result<(), PodError> {
    let (id, config, name) = (*id, Arc::clone(config), name.to_owned());
    world
        .blocking(move |world| {
            let _stage = debug_span!("files and cgroup").entered();
            let files = world.pod_files(&id, &config);
            let resolv_conf = &world.config.host_resolv_conf;
            files::write_names(&files, &config, &name, resolv_conf)
                .map_err(|error| PodError::step("write the pod's files", error))?;
            match world.pod_cgroup(&id, &config) {
                (path, true) => world
                    .cgroups
                    .create(&path)
                    .map_err(|error| PodError::step("make the pod's cgroup", error)),
                (_, false) => Ok(()),
            }
        })
        .await
}

/// The shim with the namespaces, and then the network.
async fn make_shim(
    world: &Arc<World>,
    id: &PodId,
    config: &PodConfig,
    name: &str,
) -> Result<(Forked, Vec<IpAddr>), PodError> {
    let setup = setup(world, id, config, name);
    let forked = world
        .shims
        .fork(setup, world.config.start_timeout)
        .instrument(debug_span!("fork the shim"))
        .await
        .map_err(|error| PodError::step("make the pod's namespaces", error))?;
    if config.namespaces.network == NamespaceMode::Node {
        return Ok((forked, Vec::new()));
    }
    let attached = world
        .network
        .add(network_pod(id, config, forked.ready.pid))
        .instrument(debug_span!("add the network"))
        .await;
    let attachment = attached.map_err(|error| PodError::Network {
        pod: *id,
        kind: match &error {
            kelson_network::Error::NotReady(_) => ErrorKind::Unavailable,
            kelson_network::Error::Exhausted { .. } => ErrorKind::Exhausted,
            _ => ErrorKind::Internal,
        },
        source: Arc::new(error),
    })?;
    let mut ips = attachment.ips;
    // IPv4 first, and otherwise as the network ordered them.
    ips.sort_by_key(IpAddr::is_ipv6);
    Ok((forked, ips))
}

fn setup(world: &World, id: &PodId, config: &PodConfig, name: &str) -> PodSetup {
    let own = |mode| match mode {
        NamespaceMode::Node => Namespace::Host,
        NamespaceMode::Pod | NamespaceMode::Container | NamespaceMode::Target => Namespace::New,
    };
    let namespaces = &config.namespaces;
    let network = own(namespaces.network);
    let ipc = own(namespaces.ipc);
    PodSetup {
        version: kelson_shim::proto::VERSION,
        id: *id,
        dir: world.pod_dir(id),
        namespaces: PodNamespaces {
            network,
            ipc,
            // The host's network has the host's name.
            uts: network,
            pid: if namespaces.pid == NamespaceMode::Pod {
                Namespace::New
            } else {
                Namespace::Host
            },
        },
        hostname: (network == Namespace::New).then(|| name.to_owned()),
        sysctls: sysctls(world.config.unprivileged_ports, config),
        user: namespaces.own_users().map(|user| {
            let lines = |list: &[IdMapping]| {
                let line = |m: &IdMapping| (m.container_id, m.host_id, m.length);
                list.iter().map(line).collect()
            };
            UserNamespace {
                uids: lines(&user.uids),
                gids: lines(&user.gids),
            }
        }),
        shm_size: (ipc == Namespace::New).then_some(world.config.shm_size),
    }
}

/// What the request says, over what every pod with a network of its own has.
fn sysctls(unprivileged: bool, config: &PodConfig) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    // The host's parameters are not touched.
    if config.namespaces.network != NamespaceMode::Node && unprivileged {
        for (name, value) in UNPRIVILEGED {
            all.insert((*name).to_owned(), (*value).to_owned());
        }
    }
    for (name, value) in &config.sysctls {
        // Slashes are another spelling of the same name.
        all.remove(&name.replace('/', "."));
        all.insert(name.clone(), value.clone());
    }
    let gids = config
        .namespaces
        .own_users()
        .and_then(|user| user.gids.first());
    let key = [PING.to_owned(), PING.replace('.', "/")];
    let ping = key.into_iter().find(|key| all.contains_key(key));
    if let (Some(gids), Some(value)) = (gids, ping.and_then(|key| all.get_mut(&key))) {
        // A group that does not exist in the user namespace is none for the kernel.
        let last = gids.length.saturating_sub(1);
        let words: Option<Vec<u32>> = value
            .split_ascii_whitespace()
            .map(|word| word.parse().ok())
            .collect();
        if let Some([first, end]) = words.as_deref()
            && *first <= last
            && *end > last
        {
            *value = format!("{first} {last}");
        }
    }
    all
}

fn network_pod(id: &PodId, config: &PodConfig, shim: u32) -> NetworkPod {
    let metadata = &config.metadata;
    let ports = config
        .ports
        .iter()
        .filter(|port| port.host_port != 0)
        .map(|port| {
            kelson_network::PortMapping {
                // Validation has seen to it that they fit.
                host_port: u16::try_from(port.host_port).unwrap_or_default(),
                container_port: u16::try_from(port.container_port).unwrap_or_default(),
                protocol: match port.protocol {
                    Protocol::Tcp => kelson_network::Protocol::Tcp,
                    Protocol::Udp => kelson_network::Protocol::Udp,
                    Protocol::Sctp => kelson_network::Protocol::Sctp,
                },
                host_ip: port.host_ip.parse().ok(),
            }
        });
    let mut pod = NetworkPod::new(id.as_str(), Netns::Pid(shim));
    pod.name.clone_from(&metadata.name);
    pod.namespace.clone_from(&metadata.namespace);
    pod.uid.clone_from(&metadata.uid);
    pod.ports = ports.collect();
    pod.annotations.clone_from(&config.annotations);
    // Validation has seen to it that they make sense.
    pod.bandwidth = bandwidth::of(&config.annotations).unwrap_or_default();
    pod.fallback = config
        .annotations
        .get(NETWORK_FALLBACK)
        .is_some_and(|network| network == "bridge");
    pod.dns = config.dns.as_ref().map(|dns| kelson_network::Dns {
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
    });
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn low_ports_and_ping_are_free_in_the_pods_network() {
        const LOW_PORTS: &str = "net.ipv4.ip_unprivileged_port_start";
        let mut config = PodConfig::default();
        let all = sysctls(true, &config);
        assert_eq!(all[LOW_PORTS], "0");
        assert_eq!(all[PING], "0 2147483647");
        assert!(sysctls(false, &config).is_empty());
        config.sysctls = [("net/ipv4/ip_unprivileged_port_start".into(), "9".into())].into();
        assert!(!sysctls(true, &config).contains_key(LOW_PORTS));

        let line = IdMapping {
            host_id: 1 << 20,
            container_id: 0,
            length: 65_536,
        };
        config.namespaces.user = Some(config::UserNamespace {
            mode: NamespaceMode::Pod,
            uids: vec![line],
            gids: vec![line],
        });
        assert_eq!(sysctls(true, &config)[PING], "0 65535");
        config.sysctls = [(PING.to_owned(), "5 70000".to_owned())].into();
        assert_eq!(sysctls(true, &config)[PING], "5 65535");
        config.sysctls = [(PING.to_owned(), "1 0".to_owned())].into();
        assert_eq!(sysctls(true, &config)[PING], "1 0");

        config.namespaces.network = NamespaceMode::Node;
        config.sysctls.clear();
        assert!(sysctls(true, &config).is_empty());
    }
}
