//! A WebSocket to the kubelet, as `kubectl exec`, `attach` and `port-forward` have one.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Error, Message, WebSocket};

use super::agent::Agent;

/// How long the other side may be silent.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection whose messages begin with the number of their channel.
pub(crate) struct Socket(WebSocket<StreamOwned<ClientConnection, TcpStream>>);

/// Why there is no connection: the HTTP status and the text of the answer.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) u16, pub(crate) String);

impl Socket {
    /// Opens `path` with `protocol`; a refusal if the kubelet answers otherwise.
    pub(crate) fn open(
        agent: &Agent,
        path: &str,
        protocol: &'static str,
    ) -> Result<std::result::Result<Self, Refusal>> {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(agent.certificate())
            .context("cannot read the kubelet's certificate")?;
        roots
            .add(certificate)
            .context("the certificate is no authority")?;
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let address = ("127.0.0.1", agent.port());
        let tcp = TcpStream::connect(address).context("cannot connect to the kubelet")?;
        tcp.set_read_timeout(Some(PATIENCE))
            .context("cannot set a timeout")?;
        let server = ServerName::try_from("127.0.0.1").context("no name of a server")?;
        let tls = ClientConnection::new(Arc::new(config), server).context("cannot use TLS")?;
        let mut request = format!("wss://127.0.0.1:{}{path}", agent.port())
            .into_client_request()
            .context("not a path")?;
        let protocol = protocol.parse().context("not a protocol")?;
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol);
        match tungstenite::client(request, StreamOwned::new(tls, tcp)) {
            Ok((socket, _)) => Ok(Ok(Self(socket))),
            Err(tungstenite::HandshakeError::Failure(Error::Http(answer))) => {
                let code = answer.status().as_u16();
                let text = answer.into_body().unwrap_or_default();
                let text = String::from_utf8_lossy(&text).into_owned();
                Ok(Err(Refusal(code, text)))
            }
            Err(error) => bail!("cannot open {path}: {error}"),
        }
    }

    /// Sends bytes on a channel.
    pub(crate) fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let message = [&[channel], bytes].concat();
        self.0.send(Message::binary(message)).context("cannot send")
    }

    /// Ends a channel, as protocol version 5 does it.
    pub(crate) fn finish(&mut self, channel: u8) -> Result<()> {
        self.0
            .send(Message::binary(vec![255, channel]))
            .context("cannot end a channel")
    }

    /// Reads until `enough` of what came so far, by channel, or until the other side closes.
    pub(crate) fn read(&mut self, enough: impl Fn(&[Vec<u8>]) -> bool) -> Result<Vec<Vec<u8>>> {
        let mut channels = vec![Vec::new(); 5];
        while !enough(&channels) {
            match self.0.read() {
                Ok(Message::Binary(bytes)) => {
                    let (channel, rest) =
                        bytes.split_first().context("a message without channel")?;
                    let heap = channels.get_mut(usize::from(*channel));
                    heap.context("an unknown channel")?.extend_from_slice(rest);
                    let sum: usize = channels.iter().map(Vec::len).sum();
                    ensure!(sum < 1 << 24, "more than was asked for");
                }
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                    break;
                }
                Ok(_) => {}
                Err(error) => bail!(
                    "the connection broke: {error}; so far {:?}",
                    channels
                        .iter()
                        .map(|bytes| String::from_utf8_lossy(bytes))
                        .collect::<Vec<_>>()
                ),
            }
        }
        Ok(channels)
    }
}
