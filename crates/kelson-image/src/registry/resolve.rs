//! Names of hosts to addresses, by `/etc/hosts` and the servers in `/etc/resolv.conf`.
//!
//! The C library is not asked: it loads what `/etc/nsswitch.conf` names, of its own version only, which a
//! statically linked program cannot rely on. Both files are read for each name, so that a change of the
//! node's network is seen at once; connections are kept, so that there are few names.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;
use hyper_util::client::legacy::connect::dns::Name;

/// Asks what the node is configured to ask. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    conf: PathBuf,
    /// The port of the servers, which the file cannot say.
    port: u16,
}

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
#[error("cannot resolve {name}")]
pub(super) struct ResolveError {
    name: String,
    source: NetError,
}

impl Resolver {
    /// What the node's programs use.
    pub(super) fn of_system() -> Self {
        Self {
            conf: "/etc/resolv.conf".into(),
            port: 53,
        }
    }

    async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, NetError> {
        let (mut config, options) = read(&self.conf)?;
        let servers = config.name_servers().to_vec();
        config = ResolverConfig::from_parts(
            config.domain().cloned(),
            config.search().to_vec(),
            servers
                .into_iter()
                .map(|server| self.at_port(server))
                .collect(),
        );
        let provider = TokioRuntimeProvider::default();
        let mut builder = TokioResolver::builder_with_config(config, provider);
        *builder.options_mut() = options;
        let found = builder.build()?.lookup_ip(name).await?;
        Ok(found.iter().collect())
    }

    fn at_port(&self, mut server: NameServerConfig) -> NameServerConfig {
        for connection in &mut server.connections {
            connection.port = self.port;
        }
        server
    }
}

/// What a `resolv.conf` says; without a server in it, or without the file, the one on this node is meant
/// (resolv.conf(5)).
fn read(path: &Path) -> Result<(ResolverConfig, ResolverOpts), NetError> {
    let mut text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let names_one = |line: &[u8]| line.trim_ascii_start().starts_with(b"nameserver");
    if !text.split(|byte| *byte == b'\n').any(names_one) {
        text.extend_from_slice(format!("\nnameserver {}\n", Ipv4Addr::LOCALHOST).as_bytes());
    }
    parse_resolv_conf(text)
}

impl tower::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = ResolveError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.lookup(name.as_str()).await;
            let addresses = found.map_err(|source| ResolveError {
                name: name.as_str().to_owned(),
                source,
            })?;
            // The port is the connector's to add.
            let sockets = addresses.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(sockets.collect::<Vec<_>>().into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::str::FromStr as _;

    use super::*;

    /// A server that knows one address, 192.0.2.7, for `registry.example.` only.
    fn server() -> u16 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut packet) {
                // RFC 1035, section 4.1: 12 bytes of header, then the question.
                let Some(name) = packet[12..len].iter().position(|byte| *byte == 0) else {
                    continue;
                };
                let question = &packet[12..12 + name + 5];
                let known = question[..name].eq_ignore_ascii_case(b"\x08registry\x07example");
                let address = known && question[name + 1..name + 3] == [0, 1];
                let mut answer = packet[..2].to_vec();
                answer.extend([0x81, if known { 0x80 } else { 0x83 }, 0, 1, 0]);
                answer.extend([u8::from(address), 0, 0, 0, 0]);
                answer.extend(question);
                if address {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
                }
                let _ = socket.send_to(&answer, from);
            }
        });
        port
    }

    fn resolver(dir: &Path, conf: &str) -> Resolver {
        let path = dir.join("resolv.conf");
        std::fs::write(&path, conf).unwrap();
        Resolver {
            conf: path,
            port: server(),
        }
    }

    async fn ask(resolver: &mut Resolver, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let name = Name::from_str(name).unwrap();
        let found = tower::Service::call(resolver, name).await?;
        Ok(found.map(|address| address.ip()).collect())
    }

    #[tokio::test]
    async fn the_servers_of_the_file_are_asked() {
        let dir = tempfile::tempdir().unwrap();
        let conf = "# made by hand\nsearch example other\nnameserver 127.0.0.1\noptions trust-ad ndots:1 new:1\n";
        let mut resolver = resolver(dir.path(), conf);
        let address = [IpAddr::from([192, 0, 2, 7])];
        assert_eq!(
            ask(&mut resolver, "registry.example").await.unwrap(),
            address
        );
        // A name without a dot is searched for.
        assert_eq!(ask(&mut resolver, "registry").await.unwrap(), address);
        let error = ask(&mut resolver, "elsewhere.example").await.unwrap_err();
        assert_eq!(error.to_string(), "cannot resolve elsewhere.example");
    }

    #[tokio::test]
    async fn without_a_server_the_node_itself_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let mut resolver = resolver(dir.path(), "options timeout:1\n");
        let address = [IpAddr::from([192, 0, 2, 7])];
        assert_eq!(
            ask(&mut resolver, "registry.example").await.unwrap(),
            address
        );
        std::fs::remove_file(&resolver.conf).unwrap();
        assert_eq!(
            ask(&mut resolver, "registry.example").await.unwrap(),
            address
        );
    }

    #[tokio::test]
    async fn the_hosts_file_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut resolver = resolver(dir.path(), "nameserver 127.0.0.1\n");
        let found = ask(&mut resolver, "localhost").await.unwrap();
        assert!(
            !found.is_empty() && found.iter().all(IpAddr::is_loopback),
            "{found:?}"
        );
    }
}
