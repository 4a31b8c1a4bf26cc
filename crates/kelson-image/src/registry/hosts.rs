//! `hosts.toml`: which hosts serve a registry's images, and how to talk to them.
//!
//! The schema and the search are containerd's: one directory per registry below the certificate
//! directory, named `host:port` or `host_port_` or `_default`, with a file `hosts.toml`. The file is
//! read on each pull, so that a change needs no restart. Mistakes are reported with file and line.
//! This module reads files and opens no connection.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Largest `hosts.toml` in bytes, and largest certificate or key file.
const MAX_FILE: u64 = 1 << 20;

/// Why the configuration of a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not valid TOML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is wrong.
    #[error("{}:{line}: {key}: {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// What it should be.
        reason: &'static str,
    },
    /// A certificate or a key is unusable.
    #[error("{}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The certificates make no usable TLS configuration.
    #[error("TLS cannot be set up with these certificates")]
    Tls(#[source] rustls::Error),
}

/// TLS settings of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct TlsFiles {
    pub(crate) skip_verify: bool,
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate and key; the key is in the certificate's file if there is only one.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
}

/// One host that may serve a registry's images.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Scheme, authority, and the path before `/<repository>/manifests/…`, without a final slash.
    pub(crate) base: Uri,
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) headers: HeaderMap,
    pub(crate) dial_timeout: Option<Duration>,
    pub(crate) tls: TlsFiles,
    /// The registry itself, not a mirror: the last in the list.
    pub(crate) origin: bool,
}

/// The hosts for images of `domain`, in the order in which to try them.
pub(crate) fn load(certs_dir: &Path, domain: &str) -> Result<Vec<Host>, HostsError> {
    for name in directories(domain) {
        let path = certs_dir.join(name).join("hosts.toml");
        match read_capped(&path) {
            Ok(text) => return parse(&path, &text, domain),
            Err(source) if is_absent(&source) => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
    }
    Ok(vec![default_origin(domain)])
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Reads a file of the operator's, refusing one that cannot be configuration.
pub(crate) fn read_capped(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the limit is 1 MiB",
        ));
    }
    Ok(text)
}

/// Directory names to look for, the most specific first. A domain is checked text: it has no slash.
fn directories(domain: &str) -> Vec<String> {
    let mut names = Vec::with_capacity(3);
    if let Some((host, port)) = domain.rsplit_once(':')
        && !port.contains(']')
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(domain.to_owned());
    names.push("_default".to_owned());
    names
}

/// Whether the authority (host with optional port) is this machine.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The host that serves a domain without configuration.
fn default_authority(domain: &str) -> &str {
    if domain == "docker.io" {
        "registry-1.docker.io"
    } else {
        domain
    }
}

fn default_origin(domain: &str) -> Host {
    let authority = default_authority(domain);
    let scheme = if is_loopback(authority) {
        "http"
    } else {
        "https"
    };
    let base = format!("{scheme}://{authority}/v2").parse();
    Host {
        base: base.expect("the domain of a parsed reference is a valid authority"),
        pull: true,
        resolve: true,
        headers: HeaderMap::new(),
        dial_timeout: None,
        tls: TlsFiles::default(),
        origin: true,
    }
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn line(&self, offset: usize) -> usize {
        1 + self
            .text
            .as_bytes()
            .iter()
            .take(offset)
            .filter(|byte| **byte == b'\n')
            .count()
    }

    fn error(&self, offset: usize, key: &str, reason: &'static str) -> HostsError {
        let path = self.path.to_owned();
        HostsError::Value {
            path,
            line: self.line(offset),
            key: key.to_owned(),
            reason,
        }
    }

    fn resolve(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(name)
    }
}

fn parse(path: &Path, text: &str, domain: &str) -> Result<Vec<Host>, HostsError> {
    let file = File { path, text };
    let root = DeTable::parse(text).map_err(|source| HostsError::Syntax {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let mut origin = default_origin(domain);
    let mut override_path = false;
    let mut server = None;
    let mut mirrors: Vec<(usize, Host)> = Vec::new();
    for (key, value) in root.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("server", DeValue::String(url)) => {
                server = Some((value.span().start, url.as_ref()));
            }
            ("host", DeValue::Table(hosts)) => {
                for (url, settings) in hosts {
                    let at = url.span().start;
                    mirrors.push((at, mirror(&file, at, url.get_ref(), settings)?));
                }
            }
            (name, _) => setting(&file, name, value, &mut origin, &mut override_path)?,
        }
    }
    if let Some((at, url)) = server.filter(|(_, url)| !url.is_empty()) {
        origin.base = base_url(&file, at, "server", url, override_path)?;
    }
    // Tables come sorted by key; their order in the file is the order of trying.
    mirrors.sort_by_key(|(at, _)| *at);
    let mut hosts: Vec<Host> = mirrors.into_iter().map(|(_, host)| host).collect();
    hosts.push(origin);
    Ok(hosts)
}

fn mirror(
    file: &File<'_>,
    at: usize,
    url: &str,
    settings: &Spanned<DeValue<'_>>,
) -> Result<Host, HostsError> {
    let mut host = Host {
        origin: false,
        ..default_origin("localhost")
    };
    let mut override_path = false;
    let DeValue::Table(table) = settings.get_ref() else {
        return Err(file.error(at, url, "must be a table"));
    };
    for (key, value) in table {
        setting(file, key.get_ref(), value, &mut host, &mut override_path)?;
    }
    host.base = base_url(file, at, "host", url, override_path)?;
    Ok(host)
}

fn base_url(
    file: &File<'_>,
    at: usize,
    key: &str,
    url: &str,
    override_path: bool,
) -> Result<Uri, HostsError> {
    let scheme = match url.contains("://") {
        true => "",
        false if is_loopback(url) => "http://",
        false => "https://",
    };
    let invalid = || {
        file.error(
            at,
            key,
            "must be a URL such as \"https://mirror.example:5000\"",
        )
    };
    let uri: Uri = format!("{scheme}{url}").parse().map_err(|_| invalid())?;
    let authority = uri.authority().ok_or_else(invalid)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.query().is_some() {
        return Err(invalid());
    }
    if authority.as_str().contains('@') {
        return Err(file.error(at, key, "must not hold credentials; use a header"));
    }
    let path = uri.path().trim_end_matches('/');
    let path = match override_path || path.ends_with("/v2") {
        true => path.to_owned(),
        false => format!("{path}/v2"),
    };
    let scheme = uri.scheme_str().unwrap_or("https");
    format!("{scheme}://{authority}{path}")
        .parse()
        .map_err(|_| invalid())
}

/// Reads one key that is legal both at the top (for the server) and in a `host` table.
fn setting(
    file: &File<'_>,
    key: &str,
    value: &Spanned<DeValue<'_>>,
    host: &mut Host,
    override_path: &mut bool,
) -> Result<(), HostsError> {
    let wrong = |reason| file.error(value.span().start, key, reason);
    match (key, value.get_ref()) {
        ("capabilities", value) => {
            const RULE: &str =
                "must be a list of \"pull\", \"resolve\", \"push\" and \"referrers\"";
            let names = strings(value).ok_or_else(|| wrong(RULE))?;
            if !names
                .iter()
                .all(|n| matches!(*n, "pull" | "resolve" | "push" | "referrers"))
            {
                return Err(wrong(RULE));
            }
            host.pull = names.contains(&"pull");
            host.resolve = names.contains(&"resolve");
        }
        ("skip_verify", DeValue::Boolean(yes)) => host.tls.skip_verify = *yes,
        ("override_path", DeValue::Boolean(yes)) => *override_path = *yes,
        ("ca", value) => {
            let names =
                strings(value).ok_or_else(|| wrong("must be a file name or a list of them"))?;
            host.tls.ca = names.into_iter().map(|name| file.resolve(name)).collect();
        }
        ("client", value) => {
            host.tls.client = client_pairs(file, value).ok_or_else(|| {
                wrong("must be a file name, a list of them, or a list of [certificate, key] pairs")
            })?;
        }
        ("header", DeValue::Table(table)) => {
            for (name, value) in table {
                header(&mut host.headers, name.get_ref(), value.get_ref())
                    .ok_or_else(|| wrong("must map header names to a text or a list of texts"))?;
            }
        }
        ("dial_timeout", DeValue::String(text)) => {
            let timeout = duration(text).ok_or_else(|| wrong("must be a time such as \"3s\""))?;
            host.dial_timeout = Some(timeout);
        }
        ("server" | "host" | "skip_verify" | "override_path" | "header" | "dial_timeout", _) => {
            return Err(wrong("has a value of the wrong type"));
        }
        (unknown, _) => {
            let (path, line) = (file.path.display(), file.line(value.span().start));
            tracing::warn!("{path}:{line}: unknown key {unknown:?} is ignored");
        }
    }
    Ok(())
}

/// A text, or a list of texts.
fn strings<'a>(value: &'a DeValue<'_>) -> Option<Vec<&'a str>> {
    match value {
        DeValue::String(text) => Some(vec![text.as_ref()]),
        DeValue::Array(items) => items
            .iter()
            .map(|item| match item.get_ref() {
                DeValue::String(text) => Some(text.as_ref()),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

fn client_pairs(file: &File<'_>, value: &DeValue<'_>) -> Option<Vec<(PathBuf, Option<PathBuf>)>> {
    if let Some(names) = strings(value) {
        return Some(
            names
                .into_iter()
                .map(|name| (file.resolve(name), None))
                .collect(),
        );
    }
    let DeValue::Array(items) = value else {
        return None;
    };
    items
        .iter()
        .map(|item| match *strings(item.get_ref())?.as_slice() {
            [certificate] | [certificate, ""] => Some((file.resolve(certificate), None)),
            [certificate, key] => Some((file.resolve(certificate), Some(file.resolve(key)))),
            _ => None,
        })
        .collect()
}

/// Values of headers may be credentials: they are marked as such and never shown.
fn header(headers: &mut HeaderMap, name: &str, value: &DeValue<'_>) -> Option<()> {
    let name: HeaderName = name.parse().ok()?;
    for text in strings(value)? {
        let mut value: HeaderValue = text.parse().ok()?;
        value.set_sensitive(true);
        headers.append(name.clone(), value);
    }
    Some(())
}

/// A duration as Go writes it, of the units that make sense for a timeout: `500ms`, `3s`, `1m30s`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let end = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |n| digits + n);
        let unit = match &rest[digits..end] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * unit).ok()?;
        rest = &rest[end..];
    }
    (total > Duration::ZERO).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Host>, HostsError> {
        parse(Path::new("/certs/r.io/hosts.toml"), text, "r.io")
    }

    fn bases(hosts: &[Host]) -> Vec<String> {
        hosts.iter().map(|host| host.base.to_string()).collect()
    }

    #[test]
    fn without_a_file_the_registry_itself_serves() {
        let none = Path::new("/nonexistent");
        let base = |domain| bases(&load(none, domain).unwrap())[0].clone();
        assert_eq!(base("docker.io"), "https://registry-1.docker.io/v2");
        assert_eq!(base("r.io:443"), "https://r.io:443/v2");
        for local in [
            "localhost",
            "localhost:5000",
            "127.0.0.9:5000",
            "[::1]:5000",
        ] {
            assert_eq!(base(local), format!("http://{local}/v2"));
        }
        assert_eq!(
            base("localhost.example.com"),
            "https://localhost.example.com/v2"
        );
    }

    #[test]
    fn the_schema_is_read() {
        let hosts = read(
            r#"
            server = "https://up.io"
            ca = "/etc/ca.pem"
            [host."http://z.local:5000"]
              capabilities = ["pull"]
              [host."http://z.local:5000".header]
                x-token = ["a", "b"]
            [host."https://a.local/mirror/v2/r.io"]
              override_path = true
              skip_verify = true
              ca = ["ca.pem", "/abs.pem"]
              client = [["c.pem", "k.pem"], ["both.pem", ""]]
              dial_timeout = "1m500ms"
            [host."b.local/path/"]
            "#,
        )
        .unwrap();
        let expected = [
            "http://z.local:5000/v2",
            "https://a.local/mirror/v2/r.io",
            "https://b.local/path/v2",
            "https://up.io/v2",
        ];
        assert_eq!(bases(&hosts), expected);
        assert!(hosts[0].pull && !hosts[0].resolve);
        assert_eq!(hosts[0].headers.get_all("x-token").iter().count(), 2);
        assert_eq!(
            hosts[1].tls.ca,
            [Path::new("/certs/r.io/ca.pem"), Path::new("/abs.pem")]
        );
        assert_eq!(hosts[1].tls.client.len(), 2);
        assert_eq!(hosts[1].tls.client[1].1, None);
        assert_eq!(hosts[1].dial_timeout, Some(Duration::from_millis(60_500)));
        assert!(hosts[3].origin && !hosts[2].origin);
        assert_eq!(hosts[3].tls.ca, [Path::new("/etc/ca.pem")]);
    }

    #[test]
    fn mistakes_name_the_line() {
        let line = |text| match read(text) {
            Err(HostsError::Value { line, .. }) => line,
            other => panic!("{other:?}"),
        };
        assert_eq!(line("server = \"r.io\"\n[host.\"ftp://x\"]\n"), 2);
        assert_eq!(line("\n\nskip_verify = 1\n"), 3);
        assert_eq!(line("capabilities = [\"fly\"]"), 1);
        assert_eq!(line("[host.\"https://u:p@x\"]"), 1);
        assert_eq!(line("dial_timeout = \"soon\""), 1);
        assert!(matches!(read("server = "), Err(HostsError::Syntax { .. })));
        assert!(read("novelty = 1").is_ok());
    }

    #[test]
    fn the_most_specific_directory_wins() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, server: &str| {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
            let text = format!("server = \"https://{server}\"");
            std::fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
        };
        let base = || bases(&load(dir.path(), "r.io:5000").unwrap())[0].clone();
        put("_default", "default");
        assert_eq!(base(), "https://default/v2");
        put("r.io:5000", "colon");
        assert_eq!(base(), "https://colon/v2");
        put("r.io_5000_", "underscore");
        assert_eq!(base(), "https://underscore/v2");
    }
}
