//! TLS: which certificates are trusted and shown, per registry host.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::hosts::{HostsError, TlsFiles, read_capped};

/// Builds the TLS configuration for `files`. Reads files: call it on a blocking thread.
pub(super) fn client_config(files: &TlsFiles) -> Result<ClientConfig, HostsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(HostsError::Tls)?;
    let builder = if files.skip_verify {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
    } else {
        builder.with_root_certificates(roots(files)?)
    };
    // Several client certificates are legal in the schema; a handshake can show only one.
    let Some((certificate, key)) = files.client.first() else {
        return Ok(builder.with_no_client_auth());
    };
    let key_path = key.as_deref().unwrap_or(certificate);
    let key = PrivateKeyDer::from_pem_slice(read(key_path)?.as_bytes())
        .map_err(|_| unusable(key_path, "there is no private key in the PEM file"))?;
    builder
        .with_client_auth_cert(certificates(certificate)?, key)
        .map_err(HostsError::Tls)
}

/// The system's certificate authorities and those of the files. A machine may have none.
fn roots(files: &TlsFiles) -> Result<RootCertStore, HostsError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for path in &files.ca {
        for certificate in certificates(path)? {
            store
                .add(certificate)
                .map_err(|_| unusable(path, "a certificate is no usable authority"))?;
        }
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HostsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(read(path)?.as_bytes()).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(unusable(path, "there is no certificate in the PEM file")),
    }
}

fn read(path: &Path) -> Result<String, HostsError> {
    read_capped(path).map_err(|source| HostsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn unusable(path: &Path, reason: &'static str) -> HostsError {
    HostsError::Certificate {
        path: path.to_owned(),
        reason,
    }
}

/// Believes every server, for `skip_verify`. Signatures of the handshake are still checked.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
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
