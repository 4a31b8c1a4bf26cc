//! The proof that both sides of an upgrade mean WebSocket (RFC 6455, 4.2.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A fresh key for a client's request.
pub(crate) fn key() -> std::io::Result<String> {
    Ok(STANDARD.encode(crate::random::<16>()?))
}

/// What a server answers to a key.
pub(crate) fn accept(key: &str) -> String {
    let mut sha = Sha1::new();
    sha.update(key.as_bytes());
    sha.update(GUID.as_bytes());
    STANDARD.encode(sha.finalize())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_of_the_rfc_is_answered() {
        let answer = super::accept("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(answer, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_key_is_sixteen_bytes() {
        assert_eq!(super::key().unwrap().len(), 24);
    }
}
