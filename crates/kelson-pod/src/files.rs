//! The files of a pod that its containers see as `/etc/resolv.conf`, `/etc/hosts` and `/etc/hostname`.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::config::{Dns, NamespaceMode, PodConfig};
use crate::spec::mounts::PodFiles;
use crate::world::FileError;

/// Most bytes copied of a file of the host.
const MAX_COPY: u64 = 1 << 20;

/// Makes the pod's directory, mode 0700, or leaves it as it is.
pub(crate) fn make_dir(dir: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(FileError::on("create directory", dir))
}

/// Writes what is known before the pod has a network.
pub(crate) fn write_names(
    files: &PodFiles,
    config: &PodConfig,
    hostname: &str,
    host_resolv_conf: &Path,
) -> Result<(), FileError> {
    write(&files.hostname, &format!("{hostname}\n"), config)?;
    match &config.dns {
        Some(dns) => write(&files.resolv_conf, &resolv_conf(dns), config),
        None => write(&files.resolv_conf, &copy_of(host_resolv_conf)?, config),
    }
}

/// Writes the hosts file: the host's on the host's network, else the pod's own name.
pub(crate) fn write_hosts(
    files: &PodFiles,
    config: &PodConfig,
    hostname: &str,
    ips: &[IpAddr],
    host_hosts: &Path,
) -> Result<(), FileError> {
    let text = if config.namespaces.network == NamespaceMode::Node {
        copy_of(host_hosts)?
    } else {
        hosts(hostname, ips)
    };
    write(&files.hosts, &text, config)
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for ip in ips {
        let _ = writeln!(text, "{ip}\t{hostname}");
    }
    text
}

/// The text of a file of the host; nothing when there is none.
fn copy_of(path: &Path) -> Result<String, FileError> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        other => other.map_err(FileError::on("open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_COPY)
        .read_to_end(&mut bytes)
        .map_err(FileError::on("read", path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes a file that belongs to the root of the pod's containers.
fn write(path: &Path, text: &str, config: &PodConfig) -> Result<(), FileError> {
    let mut options = fs::OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path);
    let mut file = file.map_err(FileError::on("create", path))?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(FileError::on("write", path))?;
    let root = config.namespaces.own_users();
    if let Some((uid, gid)) = root.and_then(|user| user.host(0, 0)) {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid))
            .map_err(FileError::on("give away", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_settings_become_a_resolv_conf() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let dns = Dns {
            servers: words("10.0.0.10 fd00::1"),
            searches: words("a.svc svc"),
            options: words("ndots:5 edns0"),
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a.svc svc\nnameserver 10.0.0.10\nnameserver fd00::1\noptions ndots:5 edns0\n"
        );
        assert_eq!(resolv_conf(&Dns::default()), "");
    }

    #[test]
    fn files_of_a_pod() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let files = PodFiles {
            resolv_conf: at("resolv.conf"),
            hosts: at("hosts"),
            hostname: at("hostname"),
            shm: at("shm"),
        };
        fs::write(at("host"), "nameserver 1.1.1.1\n").unwrap();
        let mut config = PodConfig::default();
        write_names(&files, &config, "web", &at("host")).unwrap();
        write_hosts(
            &files,
            &config,
            "web",
            &["10.0.0.2".parse().unwrap()],
            &at("host"),
        )
        .unwrap();
        assert_eq!(
            fs::read_to_string(at("resolv.conf")).unwrap(),
            "nameserver 1.1.1.1\n"
        );
        assert_eq!(fs::read_to_string(at("hostname")).unwrap(), "web\n");
        assert!(
            fs::read_to_string(at("hosts"))
                .unwrap()
                .ends_with("10.0.0.2\tweb\n")
        );

        config.namespaces.network = NamespaceMode::Node;
        write_hosts(&files, &config, "web", &[], &at("host")).unwrap();
        assert_eq!(
            fs::read_to_string(at("hosts")).unwrap(),
            "nameserver 1.1.1.1\n"
        );
        // A host without the file is no error.
        write_names(&files, &config, "web", &at("missing")).unwrap();
        assert_eq!(fs::read_to_string(at("resolv.conf")).unwrap(), "");
    }
}
