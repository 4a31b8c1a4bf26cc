//! Credentials for one registry, as the CRI's `AuthConfig` and Docker's configuration give them.
//!
//! A [`Secret`] never shows itself: not in `Debug`, not in an error.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kelson_snapshot::Digest;

/// Longest secret or user name in bytes. HTTP servers refuse headers far shorter than this.
const MAX_SECRET: usize = 64 << 10;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The fields of the CRI's `AuthConfig`; an empty text is an absent one.
#[derive(Clone, Default)]
pub struct AuthConfig {
    /// User name, with `password`.
    pub username: String,
    /// Password, with `username`.
    pub password: String,
    /// Base64 of `user:password`.
    pub auth: String,
    /// The registry that the credentials are for, as a host or a URL; empty: the image's.
    pub server_address: String,
    /// A refresh token, exchanged for an access token at the registry's token server.
    pub identity_token: String,
    /// A bearer token that is sent to the registry as it is.
    pub registry_token: String,
}

/// Why an `AuthConfig` is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// `auth` is not base64 of `user:password`.
    #[error("field \"auth\" of the credentials is not base64 of \"user:password\"")]
    Auth,
    /// There is a user name with a colon, which basic authentication cannot express.
    #[error("user name of the credentials contains a colon or a control character")]
    UserName,
    /// A field is too long.
    #[error("a field of the credentials is longer than the limit of {MAX_SECRET} bytes")]
    TooLong,
}

/// What to prove one's identity with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    Basic { username: String, password: Secret },
    Refresh(Secret),
    Bearer(Secret),
}

/// Credentials for the registry that an image reference names, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    identity: Option<Identity>,
    server: Option<String>,
}

impl Credentials {
    /// No credentials.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// A user name and a password.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        let identity = Identity::Basic {
            username: username.into(),
            password: Secret::new(password),
        };
        Self {
            identity: Some(identity),
            server: None,
        }
    }

    /// Reads the CRI's form. The first field that is set wins: registry token, identity token,
    /// user name with password, `auth`. No field at all is anonymous.
    ///
    /// # Errors
    /// A field is malformed or too long.
    pub fn from_auth_config(config: &AuthConfig) -> Result<Self, CredentialsError> {
        let AuthConfig {
            username,
            password,
            auth,
            server_address,
            identity_token,
            registry_token,
        } = config;
        let fields = [
            username,
            password,
            auth,
            server_address,
            identity_token,
            registry_token,
        ];
        if fields.iter().any(|field| field.len() > MAX_SECRET) {
            return Err(CredentialsError::TooLong);
        }
        let identity = if !registry_token.is_empty() {
            Some(Identity::Bearer(Secret::new(registry_token)))
        } else if !identity_token.is_empty() {
            Some(Identity::Refresh(Secret::new(identity_token)))
        } else if !username.is_empty() {
            Some(Identity::Basic {
                username: username.clone(),
                password: Secret::new(password),
            })
        } else if !auth.is_empty() {
            Some(decode_auth(auth)?)
        } else {
            None
        };
        if let Some(Identity::Basic { username, .. }) = &identity
            && username.contains(|c: char| c == ':' || c.is_control())
        {
            return Err(CredentialsError::UserName);
        }
        let server = (!server_address.is_empty()).then(|| server_host(server_address));
        Ok(Self { identity, server })
    }

    /// What to use for images of `domain`: nothing if the credentials are for another registry.
    pub(crate) fn for_domain(&self, domain: &str) -> Option<&Identity> {
        match &self.server {
            Some(server) if server_host(server) != server_host(domain) => None,
            _ => self.identity.as_ref(),
        }
    }

    /// Tells two callers with different rights apart without keeping their secrets.
    pub(crate) fn fingerprint(&self) -> Digest {
        let (kind, user, secret) = match &self.identity {
            None => ("none", "", ""),
            Some(Identity::Basic { username, password }) => {
                ("basic", username.as_str(), password.expose())
            }
            Some(Identity::Refresh(token)) => ("refresh", "", token.expose()),
            Some(Identity::Bearer(token)) => ("bearer", "", token.expose()),
        };
        let server = self.server.as_deref().unwrap_or_default();
        Digest::of([kind, user, secret, server].join("\0").as_bytes())
    }
}

fn decode_auth(auth: &str) -> Result<Identity, CredentialsError> {
    let bytes = STANDARD
        .decode(auth.trim())
        .map_err(|_| CredentialsError::Auth)?;
    let text = String::from_utf8(bytes).map_err(|_| CredentialsError::Auth)?;
    let (username, password) = text.split_once(':').ok_or(CredentialsError::Auth)?;
    // Docker's helpers pad with NUL bytes.
    let password = Secret::new(password.trim_end_matches('\0'));
    Ok(Identity::Basic {
        username: username.to_owned(),
        password,
    })
}

/// The host and port of a registry address, which may be a URL as in Docker's configuration.
fn server_host(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest
        .split('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(auth: &str) -> AuthConfig {
        AuthConfig {
            auth: auth.to_owned(),
            ..AuthConfig::default()
        }
    }

    #[test]
    fn every_form_of_the_cri_is_read() {
        let basic = Credentials::basic("me", "p:w");
        assert_eq!(
            Credentials::from_auth_config(&auth("bWU6cDp3")),
            Ok(basic.clone())
        );
        assert_eq!(
            Credentials::from_auth_config(&auth("bWU6cDp3AAA=")),
            Ok(basic)
        );
        assert_eq!(
            Credentials::from_auth_config(&auth("bWU=")),
            Err(CredentialsError::Auth)
        );
        assert_eq!(
            Credentials::from_auth_config(&auth("!")),
            Err(CredentialsError::Auth)
        );
        let nothing = AuthConfig::default();
        assert_eq!(
            Credentials::from_auth_config(&nothing),
            Ok(Credentials::anonymous())
        );
        let token = AuthConfig {
            identity_token: "t".into(),
            username: "u".into(),
            ..nothing
        };
        let got = Credentials::from_auth_config(&token).unwrap();
        assert_eq!(got.identity, Some(Identity::Refresh(Secret::new("t"))));
    }

    #[test]
    fn credentials_stay_with_their_server() {
        let mut config = auth("bWU6cHc=");
        config.server_address = "https://index.docker.io/v1/".into();
        let credentials = Credentials::from_auth_config(&config).unwrap();
        assert!(credentials.for_domain("docker.io").is_some());
        assert!(credentials.for_domain("quay.io").is_none());
        config.server_address = "localhost:5000".into();
        let credentials = Credentials::from_auth_config(&config).unwrap();
        assert!(credentials.for_domain("localhost:5000").is_some());
        assert!(credentials.for_domain("localhost:5001").is_none());
        assert!(
            Credentials::basic("a", "b")
                .for_domain("anything.io")
                .is_some()
        );
    }

    #[test]
    fn secrets_do_not_show() {
        let shown = format!("{:?}", Credentials::basic("me", "hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
        let (one, two) = (Credentials::basic("me", "a"), Credentials::basic("me", "b"));
        assert_ne!(one.fingerprint(), two.fingerprint());
    }
}
