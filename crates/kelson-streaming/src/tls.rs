//! TLS for both sides: one provider, HTTP/1.1 only, and key pairs that are read again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme, WantsVerifier};
use tracing::{info, warn};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The beginning of a client's configuration.
pub(crate) fn client_builder()
-> Result<rustls::ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()
}

/// Believes every certificate.
pub(crate) fn anybody() -> Arc<dyn ServerCertVerifier> {
    Arc::new(Anybody(provider()))
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Where a key pair is, both as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The certificate, then those that it is signed with.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why a key pair is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyPairError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} does not hold a {what} in PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// Key and certificate do not belong together, or are of an unknown kind.
    #[error("the key in {key} and the certificate in {certificate} cannot be used together")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// When a file was changed, as far as that can be told.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl KeyPair {
    fn stamp(&self) -> Stamp {
        let of = |path: &Path| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.modified().ok()?, data.len()))
        };
        [of(&self.certificate), of(&self.key)]
    }

    fn load(&self) -> Result<CertifiedKey, KeyPairError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|source| KeyPairError::Read {
                path: path.clone(),
                source,
            })
        };
        let wrong = |path: &PathBuf, what| KeyPairError::Pem {
            path: path.clone(),
            what,
        };
        let chain = CertificateDer::pem_slice_iter(&read(&self.certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .ok()
            .filter(|chain| !chain.is_empty())
            .ok_or_else(|| wrong(&self.certificate, "certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|_| wrong(&self.key, "private key"))?;
        CertifiedKey::from_der(chain, key, &provider()).map_err(|source| KeyPairError::Pair {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        })
    }
}

/// A key pair that is read again when its files change; while those are wrong, the last good one.
#[derive(Debug)]
struct Reloading {
    files: KeyPair,
    current: Mutex<(Stamp, Arc<CertifiedKey>)>,
}

impl ResolvesServerCert for Reloading {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let stamp = self.files.stamp();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 != stamp {
            match self.files.load() {
                Ok(pair) => {
                    info!(certificate = %self.files.certificate.display(), "the streaming server has a new key pair");
                    current.1 = Arc::new(pair);
                }
                Err(error) => {
                    warn!(%error, "the streaming server keeps its key pair, the new one is of no use");
                }
            }
            current.0 = stamp;
        }
        Some(Arc::clone(&current.1))
    }
}

/// A server's configuration: HTTP/1.1 only, because HTTP/2 cannot be upgraded.
pub(crate) fn server_config(files: &KeyPair) -> Result<Arc<ServerConfig>, KeyPairError> {
    let stamp = files.stamp();
    let pair = files.load()?;
    let resolver = Reloading {
        files: files.clone(),
        current: Mutex::new((stamp, Arc::new(pair))),
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|source| KeyPairError::Pair {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        })?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
