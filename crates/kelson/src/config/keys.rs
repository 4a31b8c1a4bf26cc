//! The table of all configuration keys: name, documentation, default, check.

use std::path::PathBuf;

use toml::de::DeValue;

use super::{CgroupDriver, Config, LogFormat, NetworkFallback};

/// One key of the configuration.
pub(super) struct Key {
    /// `table.key`.
    pub(super) name: &'static str,
    /// What it means, in plain text; line breaks as they should appear.
    pub(super) doc: &'static str,
    /// The default, as TOML.
    pub(super) default: &'static str,
    /// Checks a value and puts it into the configuration; the error says what was expected.
    pub(super) set: fn(&mut Config, &DeValue<'_>) -> Result<(), String>,
}

/// All keys, in the order in which `kelson config default` prints them.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "daemon.root",
        doc: "Images, unpacked layers and the writable layers of containers. Survives a reboot.\nNeeds a file system that overlayfs accepts as upper layer (ext4, xfs, btrfs).",
        default: "\"/var/lib/kelson\"",
        set: |c, v| absolute(v).map(|p| c.root = p),
    },
    Key {
        name: "daemon.state",
        doc: "Pods, shim sockets and the state database. Should be on a tmpfs: it is about this boot.",
        default: "\"/run/kelson\"",
        set: |c, v| absolute(v).map(|p| c.state = p),
    },
    Key {
        name: "cri.socket",
        doc: "The CRI socket, made with mode 0600. Point the kubelet's --container-runtime-endpoint here.",
        default: "\"/run/kelson/kelson.sock\"",
        set: |c, v| absolute(v).map(|p| c.socket = p),
    },
    Key {
        name: "streaming.address",
        doc: "Where exec, attach and port-forward are served. The kubelet is on this node: loopback is enough,\nand whoever reaches another address and learns a token (single use, one minute) can use it.",
        default: "\"127.0.0.1\"",
        set: |c, v| {
            let address = string(v)?.parse();
            c.streaming_address =
                address.map_err(|_| "expected an IP address such as \"127.0.0.1\"".to_owned())?;
            Ok(())
        },
    },
    Key {
        name: "streaming.port",
        doc: "Its port; 0 takes any free one.",
        default: "0",
        set: |c, v| integer(v, 0, 65535).map(|n| c.streaming_port = u16::try_from(n).unwrap_or(0)),
    },
    Key {
        name: "streaming.idle_timeout",
        doc: "Seconds after which a session in which nothing moves is ended, 1 to 31536000.",
        default: "14400",
        set: |c, v| integer(v, 1, 31_536_000).map(|n| c.streaming_idle_timeout = n.unsigned_abs()),
    },
    Key {
        name: "streaming.tls_cert",
        doc: "Certificate and key, as PEM, to serve HTTPS with; both or neither. Read again when they change.",
        default: "\"\"",
        set: |c, v| optional(v).map(|path| c.streaming_tls_cert = path),
    },
    Key {
        name: "streaming.tls_key",
        doc: "The key of streaming.tls_cert.",
        default: "\"\"",
        set: |c, v| optional(v).map(|path| c.streaming_tls_key = path),
    },
    Key {
        name: "log.level",
        doc: "error, warn, info, debug, or a filter by module such as \"info,kelson_pod=debug\".",
        default: "\"info\"",
        set: |c, v| {
            let text = string(v)?;
            match text.parse::<tracing_subscriber::filter::EnvFilter>() {
                Ok(_) => {
                    c.log_level = text;
                    Ok(())
                }
                Err(_) => Err("expected a level (error, warn, info, debug) or a filter such as \"info,kelson_pod=debug\"".into()),
            }
        },
    },
    Key {
        name: "log.format",
        doc: "\"text\" for people and journald, \"json\" for one object a line.",
        default: "\"text\"",
        set: |c, v| {
            c.log_format = match string(v)?.as_str() {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err("expected \"text\" or \"json\"".into()),
            };
            Ok(())
        },
    },
    Key {
        name: "cgroup.driver",
        doc: "\"cgroupfs\", or \"systemd\" (cgroup v2 only) for pods as slices and containers as scopes.\nThe kubelet asks for it. Change it only on a node without pods.",
        default: "\"cgroupfs\"",
        set: |c, v| {
            c.cgroup_driver = match string(v)?.as_str() {
                "cgroupfs" => CgroupDriver::Cgroupfs,
                "systemd" => CgroupDriver::Systemd,
                _ => return Err("expected \"cgroupfs\" or \"systemd\"".into()),
            };
            Ok(())
        },
    },
    Key {
        name: "cgroup.prefix",
        doc: "Parent cgroup of pods whose request names none. The kubelet always names one.\nWith the systemd driver \"/kelson\" is kelson.slice.",
        default: "\"/kelson\"",
        set: |c, v| {
            let path = absolute(v)?;
            let text = path.to_str().ok_or("expected a path in UTF-8")?;
            if text == "/" {
                return Err("expected a cgroup below the root, such as \"/kelson\"".into());
            }
            c.cgroup_prefix = text.to_owned();
            Ok(())
        },
    },
    Key {
        name: "container.image_volumes",
        doc: "Directories that an image declares as volumes: \"copy\" gives each container a writable copy that\ngoes with it, \"ignore\" leaves them as other directories of the image.",
        default: "\"copy\"",
        set: |c, v| {
            c.image_volumes = match string(v)?.as_str() {
                "copy" => true,
                "ignore" => false,
                _ => return Err("expected \"copy\" or \"ignore\"".into()),
            };
            Ok(())
        },
    },
    Key {
        name: "container.cdi_dirs",
        doc: "Directories of files (.json, .yaml) that describe CDI devices; a later directory wins.",
        default: "[\"/etc/cdi\", \"/var/run/cdi\"]",
        set: |c, v| list(v, absolute).map(|dirs| c.cdi_dirs = dirs),
    },
    Key {
        name: "container.passed_annotations",
        doc: "Annotations of pods and containers that hooks are told beside the io.kubernetes.cri.* ones: names,\nor starts of names with '*' after them.",
        default: "[]",
        set: |c, v| list(v, string).map(|names| c.passed_annotations = names),
    },
    Key {
        name: "container.unprivileged_ports",
        doc: "Let every user bind ports below 1024 and send pings, in pods with a network but no user namespace\nof their own.",
        default: "true",
        set: |c, v| boolean(v).map(|b| c.unprivileged_ports = b),
    },
    Key {
        name: "container.shm_size",
        doc: "Size of a pod's /dev/shm in bytes, at least 4096. It counts as memory of the containers that use it.",
        default: "67108864",
        set: |c, v| integer(v, 4096, i64::MAX).map(|n| c.shm_size = n.unsigned_abs()),
    },
    Key {
        name: "container.pids_limit",
        doc: "Largest number of processes and threads of a container; 0: as many as its pod may have.",
        default: "0",
        set: |c, v| integer(v, 0, i64::MAX).map(|n| c.pids_limit = Some(n).filter(|n| *n > 0)),
    },
    Key {
        name: "container.rlimits",
        doc: "Resource limits of containers as \"nofile=1024:524288\" (soft:hard, or one number for both);\n\"unlimited\" is a number. What is not named is as the daemon has it.",
        default: "[]",
        set: |c, v| list(v, rlimit).map(|all| c.rlimits = all),
    },
    Key {
        name: "container.writable_cgroups",
        doc: "Mount /sys/fs/cgroup writable for containers that are not privileged, so that systemd or a container\nruntime can run in them; cgroup v2 only. In a user namespace the container's user owns its cgroup.",
        default: "false",
        set: |c, v| boolean(v).map(|b| c.writable_cgroups = b),
    },
    Key {
        name: "container.device_owner",
        doc: "Give device nodes to the user and group that run_as_user and run_as_group of the container name.\nNot in privileged containers, nor in user namespaces, where nodes are the host's own.",
        default: "false",
        set: |c, v| boolean(v).map(|b| c.device_owner = b),
    },
    Key {
        name: "security.unset_seccomp",
        doc: "Seccomp profile of containers whose security context names none: \"unconfined\", as Kubernetes\nmeans it, or \"default\". The kubelet's seccompDefault says the same for all that comes from it.",
        default: "\"unconfined\"",
        set: |c, v| {
            c.unset_seccomp = match string(v)?.as_str() {
                "unconfined" => false,
                "default" => true,
                _ => return Err("expected \"unconfined\" or \"default\"".into()),
            };
            Ok(())
        },
    },
    Key {
        name: "security.selinux",
        doc: "Give containers SELinux labels: those that the machine's policy has for containers, with two\ncategories of the pod's own. Without SELinux in the kernel it means nothing. false accepts the\nlabels of requests, and sets none.",
        default: "false",
        set: |c, v| boolean(v).map(|b| c.selinux = b),
    },
    Key {
        name: "network.conf_dir",
        doc: "CNI configuration lists; the first valid one by name is used, and read again when it changes.",
        default: "\"/etc/cni/net.d\"",
        set: |c, v| absolute(v).map(|p| c.cni_conf_dir = p),
    },
    Key {
        name: "network.conf_template",
        doc: "A conflist with placeholders, for nodes whose kubelet tells the pod addresses (UpdateRuntimeConfig).\nWithout a usable network it becomes 10-kelson.conflist in conf_dir. {{.PodCIDR}} is the first range,\n{{.PodCIDRRanges}} all of them as host-local's ranges, {{.Routes}} default routes as its routes.\nEmpty: none.",
        default: "\"\"",
        set: |c, v| optional(v).map(|path| c.cni_conf_template = path),
    },
    Key {
        name: "network.bin_dirs",
        doc: "Where CNI plugins are found that Kelson does not have itself.",
        default: "[\"/opt/cni/bin\", \"/usr/lib/cni\"]",
        set: |c, v| list(v, absolute).map(|dirs| c.cni_bin_dirs = dirs),
    },
    Key {
        name: "network.native",
        doc: "Use Kelson's own loopback, bridge, host-local and portmap when a list names only those.\nfalse runs the external plugins always.",
        default: "true",
        set: |c, v| boolean(v).map(|b| c.cni_native = b),
    },
    Key {
        name: "network.fallback",
        doc: "On a machine without a CNI configuration: \"none\" reports the network as not ready, and only\npods of `kelson run` get the built-in bridge network; \"bridge\" gives it to every pod.",
        default: "\"none\"",
        set: |c, v| {
            c.network_fallback = match string(v)?.as_str() {
                "none" => NetworkFallback::None,
                "bridge" => NetworkFallback::Bridge,
                _ => return Err("expected \"none\" or \"bridge\"".into()),
            };
            Ok(())
        },
    },
    Key {
        name: "network.fallback_bridge",
        doc: "Name of the built-in network's bridge, at most 15 characters.",
        default: "\"kelson0\"",
        set: |c, v| {
            let name = string(v)?;
            let fits = (1..=15).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !fits {
                return Err("expected 1 to 15 letters, digits, '-' or '_'".into());
            }
            c.fallback_bridge = name;
            Ok(())
        },
    },
    Key {
        name: "network.fallback_subnet",
        doc: "Subnet of the built-in network; its first address is the gateway.",
        default: "\"10.88.0.0/16\"",
        set: |c, v| {
            let net: ipnet::IpNet = string(v)?
                .parse()
                .map_err(|_| "expected a subnet such as \"10.88.0.0/16\"".to_owned())?;
            let host_bits = net.max_prefix_len() - net.prefix_len();
            if host_bits < 2 {
                return Err(
                    "expected a subnet with room for a gateway and a pod (/30 or larger)".into(),
                );
            }
            c.fallback_subnet = net;
            Ok(())
        },
    },
    Key {
        name: "network.nft_table",
        doc: "Name of the nftables table (family inet) that holds every rule of this daemon.",
        default: "\"kelson\"",
        set: |c, v| {
            let name = string(v)?;
            let plain = (1..=32).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !plain {
                return Err("expected 1 to 32 letters, digits, '-' or '_'".into());
            }
            c.nft_table = name;
            Ok(())
        },
    },
    Key {
        name: "network.ipam_dir",
        doc: "Where host-local keeps the addresses in use when a list names no dataDir.",
        default: "\"/var/lib/cni/networks\"",
        set: |c, v| absolute(v).map(|p| c.ipam_dir = p),
    },
    Key {
        name: "network.netns_dir",
        doc: "Where the network namespaces of pods are pinned by name while external plugins need them.",
        default: "\"/run/netns\"",
        set: |c, v| absolute(v).map(|p| c.netns_dir = p),
    },
    Key {
        name: "image.certs_dir",
        doc: "Registry hosts: <certs_dir>/<host[:port]>/hosts.toml and _default/hosts.toml in containerd's schema.\nRead again at every pull.",
        default: "\"/etc/kelson/certs.d\"",
        set: |c, v| absolute(v).map(|p| c.certs_dir = p),
    },
    Key {
        name: "image.max_concurrent_downloads",
        doc: "Layers of one image that are downloaded and unpacked side by side, 1 to 64.",
        default: "4",
        set: |c, v| {
            integer(v, 1, 64).map(|n| c.max_concurrent_downloads = usize::try_from(n).unwrap_or(1))
        },
    },
    Key {
        name: "image.pinned",
        doc: "References that image garbage collection must leave alone; '*' at the end matches any rest.",
        default: "[]",
        set: |c, v| list(v, string).map(|names| c.pinned_images = names),
    },
    Key {
        name: "image.max_layer_bytes",
        doc: "Largest unpacked size of one layer; a larger one is refused. Guards the disk against bombs.",
        default: "107374182400",
        set: |c, v| integer(v, 1 << 20, i64::MAX).map(|n| c.max_layer_bytes = n.unsigned_abs()),
    },
    Key {
        name: "image.sync",
        doc: "Force layers to disk, a moment after they were unpacked, and drop at the next start those that a\npower loss has overtaken. false is only safe where the disk is thrown away with the machine.",
        default: "true",
        set: |c, v| boolean(v).map(|b| c.sync_layers = b),
    },
    Key {
        name: "checkpoint.enabled",
        doc: "Checkpoint containers (CheckpointContainer) and restore them (a container whose image is the path of\nan archive) with CRIU. An archive holds memory and environment, secrets included: it is written with\nmode 0600. Restore only archives from where you would take a privileged image: CRIU reads them as root.",
        default: "false",
        set: |c, v| boolean(v).map(|b| c.checkpoints = b),
    },
    Key {
        name: "checkpoint.criu",
        doc: "CRIU: a path, or a name that is looked for in PATH and the sbin directories. Debian's package is\ncriu; kernels from 6.13 on need CRIU 4.1.",
        default: "\"criu\"",
        set: |c, v| {
            let text = string(v)?;
            let right = !text.is_empty() && (text.starts_with('/') || !text.contains('/'));
            if !right {
                return Err("expected an absolute path, or a name such as \"criu\"".into());
            }
            c.criu = PathBuf::from(text);
            Ok(())
        },
    },
];

/// The configuration with every key at its default.
pub(super) fn defaults() -> Config {
    let mut config = blank();
    for key in KEYS {
        let value = DeValue::parse(key.default).expect("a default in the table is TOML");
        (key.set)(&mut config, value.get_ref())
            .expect("a default in the table passes its own check");
    }
    config
}

/// The text of `kelson config default`: every key with its documentation and default.
pub(crate) fn default_text() -> String {
    let mut text = String::from(
        "# Kelson's configuration: /etc/kelson/config.toml, then /etc/kelson/conf.d/*.toml by name.\n\
         # Every key with its default; a later file wins key by key. Check with `kelson config check`.\n",
    );
    let mut table = "";
    for key in KEYS {
        let (group, name) = key.name.split_once('.').expect("every key is table.key");
        if group != table {
            table = group;
            text.push_str(&format!("\n[{group}]\n"));
        }
        for line in key.doc.lines() {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&format!("{name} = {}\n", key.default));
    }
    text
}

/// Placeholder values that [`defaults`] overwrites key by key.
fn blank() -> Config {
    Config {
        root: PathBuf::new(),
        state: PathBuf::new(),
        socket: PathBuf::new(),
        streaming_address: std::net::Ipv4Addr::LOCALHOST.into(),
        streaming_port: 0,
        streaming_idle_timeout: 0,
        streaming_tls_cert: None,
        streaming_tls_key: None,
        log_level: String::new(),
        log_format: LogFormat::Text,
        cgroup_driver: CgroupDriver::Cgroupfs,
        cgroup_prefix: String::new(),
        image_volumes: true,
        passed_annotations: Vec::new(),
        unprivileged_ports: true,
        shm_size: 0,
        pids_limit: None,
        rlimits: Vec::new(),
        writable_cgroups: false,
        device_owner: false,
        unset_seccomp: false,
        selinux: false,
        cdi_dirs: Vec::new(),
        cni_conf_dir: PathBuf::new(),
        cni_conf_template: None,
        cni_bin_dirs: Vec::new(),
        cni_native: true,
        network_fallback: NetworkFallback::None,
        fallback_bridge: String::new(),
        fallback_subnet: ipnet::IpNet::default(),
        nft_table: String::new(),
        ipam_dir: PathBuf::new(),
        netns_dir: PathBuf::new(),
        certs_dir: PathBuf::new(),
        max_concurrent_downloads: 0,
        pinned_images: Vec::new(),
        max_layer_bytes: 0,
        sync_layers: true,
        checkpoints: false,
        criu: PathBuf::new(),
    }
}

fn string(value: &DeValue<'_>) -> Result<String, String> {
    value
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| expected("a string", value))
}

fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| expected("true or false", value))
}

fn integer(value: &DeValue<'_>, min: i64, max: i64) -> Result<i64, String> {
    let number = value
        .as_integer()
        .ok_or_else(|| expected("a whole number", value))?;
    match i64::from_str_radix(number.as_str(), number.radix()) {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(format!("expected a whole number from {min} to {max}")),
    }
}

/// The names that setrlimit(2) has, without their prefix.
const RLIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A limit as `name=soft:hard` or `name=both`.
fn rlimit(value: &DeValue<'_>) -> Result<(String, u64, u64), String> {
    let text = string(value)?;
    let number = |text: &str| match text {
        "unlimited" => Some(u64::MAX),
        text => text.parse().ok(),
    };
    let parsed = text.split_once('=').and_then(|(name, limits)| {
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let (soft, hard) = (number(soft)?, number(hard)?);
        (RLIMITS.contains(&name) && soft <= hard)
            .then(|| (format!("RLIMIT_{}", name.to_uppercase()), soft, hard))
    });
    parsed.ok_or_else(|| {
        format!(
            "expected limits such as \"nofile=1024:524288\", the soft one first; {text:?} is none"
        )
    })
}

fn absolute(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = PathBuf::from(string(value)?);
    let plain = path.is_absolute()
        && path
            .components()
            .all(|part| !matches!(part, std::path::Component::ParentDir));
    if plain {
        Ok(path)
    } else {
        Err("expected an absolute path without \"..\"".into())
    }
}

/// An absolute path, or none when it is empty.
fn optional(value: &DeValue<'_>) -> Result<Option<PathBuf>, String> {
    match string(value)?.as_str() {
        "" => Ok(None),
        _ => absolute(value).map(Some),
    }
}

fn list<T>(
    value: &DeValue<'_>,
    item: fn(&DeValue<'_>) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let array = value.as_array().ok_or_else(|| expected("a list", value))?;
    array.iter().map(|entry| item(entry.get_ref())).collect()
}

fn expected(what: &str, value: &DeValue<'_>) -> String {
    format!("expected {what}, found {}", value.type_str())
}
