//! Authentication at one registry host: basic, and bearer tokens from a token server
//! (OCI distribution, "token authentication").
//!
//! What a host wants is learned from its first refusal and remembered for the session, tokens with
//! it until they expire. Secrets are bound: the identity to the registry that it was given for, a
//! token to the host that asked for it. They are not sent over plain HTTP to a token server unless
//! the registry itself is reached so.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::challenge::{Challenge, challenges};
use super::error::{RequestError, origin, shown};
use super::hosts::is_loopback;
use super::http::{Call, HttpClient, read_all, status_error};
use super::retry::Backoff;
use crate::config::NetworkConfig;
use crate::credentials::{Identity, Secret};

/// Largest answer of a token server in bytes.
const MAX_TOKEN: u64 = 256 << 10;
/// Life of a token whose server does not say, and the least that is believed (the specification
/// demands 60 s).
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// Longest life that is believed.
const MAX_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A token is renewed this long before its end.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);

/// The authenticator of one host in one session.
pub(super) struct Auth {
    host: Uri,
    identity: Option<Identity>,
    /// Scope to ask for where a challenge names none.
    scope: String,
    client: HttpClient,
    network: NetworkConfig,
    learned: Mutex<Learned>,
}

enum Learned {
    Nothing,
    Basic(HeaderValue),
    Bearer {
        realm: Uri,
        service: Option<String>,
        scope: String,
        token: HeaderValue,
        until: Instant,
    },
}

impl Auth {
    pub(super) fn new(
        host: Uri,
        identity: Option<Identity>,
        scope: String,
        client: HttpClient,
        network: NetworkConfig,
    ) -> Self {
        Self {
            host,
            identity,
            scope,
            client,
            network,
            learned: Mutex::new(Learned::Nothing),
        }
    }

    /// The `Authorization` header for the next request, if one is known to be wanted.
    pub(super) async fn header(&self) -> Result<Option<HeaderValue>, RequestError> {
        if let Some(Identity::Bearer(token)) = &self.identity {
            return self
                .sensitive(&format!("Bearer {}", token.expose()))
                .map(Some);
        }
        // The lock is held while a token is fetched: those who wait for it need that very token.
        let mut learned = self.learned.lock().await;
        match &*learned {
            Learned::Nothing => Ok(None),
            Learned::Basic(header) => Ok(Some(header.clone())),
            Learned::Bearer { token, until, .. } if *until > Instant::now() => {
                Ok(Some(token.clone()))
            }
            Learned::Bearer {
                realm,
                service,
                scope,
                ..
            } => {
                let fresh = self
                    .bearer(realm.clone(), service.clone(), scope.clone())
                    .await?;
                *learned = fresh;
                Ok(learned.header())
            }
        }
    }

    /// Learns from a refusal. True if the request is worth repeating.
    pub(super) async fn challenged(
        &self,
        used: Option<&HeaderValue>,
        headers: &HeaderMap,
    ) -> Result<bool, RequestError> {
        if matches!(self.identity, Some(Identity::Bearer(_))) {
            return Ok(false);
        }
        let mut learned = self.learned.lock().await;
        let current = learned.header();
        if current.is_some() && current.as_ref() != used {
            // Somebody else was refused before and has learned already.
            return Ok(true);
        }
        let offered = challenges(headers);
        let bearer = offered.iter().find_map(|challenge| match challenge {
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        if let Some((realm, service, scope)) = bearer {
            let realm: Uri = realm
                .parse()
                .map_err(|_| self.refuse("its token server has no URL"))?;
            if !matches!(realm.scheme_str(), Some("http" | "https")) || realm.host().is_none() {
                return Err(self.refuse("its token server has no HTTP URL"));
            }
            let scope = scope.clone().unwrap_or_else(|| self.scope.clone());
            *learned = self.bearer(realm, service.clone(), scope).await?;
            return Ok(true);
        }
        match &self.identity {
            Some(Identity::Basic { username, password })
                if offered.contains(&Challenge::Basic) && used.is_none() =>
            {
                *learned = Learned::Basic(self.basic(username, password)?);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn basic(&self, username: &str, password: &Secret) -> Result<HeaderValue, RequestError> {
        let pair = STANDARD.encode(format!("{username}:{}", password.expose()));
        self.sensitive(&format!("Basic {pair}"))
    }

    fn sensitive(&self, text: &str) -> Result<HeaderValue, RequestError> {
        let mut value = HeaderValue::from_str(text)
            .map_err(|_| self.refuse("the credentials have characters that HTTP cannot carry"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn refuse(&self, reason: &'static str) -> RequestError {
        RequestError::Protocol {
            url: shown(&self.host),
            reason,
        }
    }

    /// Fetches a token.
    async fn bearer(
        &self,
        realm: Uri,
        service: Option<String>,
        scope: String,
    ) -> Result<Learned, RequestError> {
        let plain = |uri: &Uri| uri.scheme_str() == Some("http");
        let local = realm
            .authority()
            .is_some_and(|authority| is_loopback(authority.as_str()));
        if self.identity.is_some() && plain(&realm) && !plain(&self.host) && !local {
            return Err(self.refuse(
                "its token server is reached over plain HTTP, credentials are not sent there",
            ));
        }
        let call = self.token_call(&realm, service.as_deref(), &scope)?;
        let mut backoff = Backoff::new(&self.network, self.network.attempts);
        let (token, life) = loop {
            match self.fetch_token(&call).await {
                Ok(got) => break got,
                Err(error) => backoff.pause(error).await?,
            }
        };
        let life = life.clamp(TOKEN_LIFE, MAX_TOKEN_LIFE);
        let token = self.sensitive(&format!("Bearer {token}"))?;
        let until = Instant::now() + life - TOKEN_MARGIN;
        Ok(Learned::Bearer {
            realm,
            service,
            scope,
            token,
            until,
        })
    }

    /// GET with basic authentication or none; POST where a refresh token is exchanged.
    fn token_call(
        &self,
        realm: &Uri,
        service: Option<&str>,
        scope: &str,
    ) -> Result<Call, RequestError> {
        let mut fields = Vec::new();
        fields.extend(service.map(|service| ("service", service)));
        // A challenge may name several scopes, separated by spaces: each is a field of its own.
        if let Some(Identity::Refresh(token)) = &self.identity {
            fields.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "kelson"),
                ("scope", scope),
                ("refresh_token", token.expose()),
            ]);
            let mut call = Call::new(Method::POST, realm.clone())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
            call.body = Bytes::from(form(&fields));
            return Ok(call);
        }
        fields.extend(scope.split_whitespace().map(|scope| ("scope", scope)));
        if let Some(Identity::Basic { username, .. }) = &self.identity {
            fields.push(("account", username));
        }
        let separator = if realm.query().is_some() { '&' } else { '?' };
        let url = format!("{realm}{separator}{}", form(&fields))
            .parse()
            .map_err(|_| self.refuse("its token server has no usable URL"))?;
        let mut call = Call::new(Method::GET, url);
        if let Some(Identity::Basic { username, password }) = &self.identity {
            call.secrets
                .insert(AUTHORIZATION, self.basic(username, password)?);
        }
        Ok(call)
    }

    async fn fetch_token(&self, call: &Call) -> Result<(String, Duration), RequestError> {
        #[derive(serde::Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
            expires_in: Option<u64>,
        }
        let wait = self.network.response_timeout;
        let (response, _) = self.client.send(call).await?;
        if response.status() != StatusCode::OK {
            return Err(status_error(&call.url, response, wait).await);
        }
        let body = read_all(&call.url, response, MAX_TOKEN, wait).await?;
        let none = || RequestError::Protocol {
            url: origin(&call.url),
            reason: "the token server's answer holds no token",
        };
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| none())?;
        let token = if answer.token.is_empty() {
            answer.access_token
        } else {
            answer.token
        };
        if token.is_empty() {
            return Err(none());
        }
        Ok((
            token,
            answer.expires_in.map_or(TOKEN_LIFE, Duration::from_secs),
        ))
    }
}

impl Learned {
    fn header(&self) -> Option<HeaderValue> {
        match self {
            Self::Nothing => None,
            Self::Basic(header) | Self::Bearer { token: header, .. } => Some(header.clone()),
        }
    }
}

/// `name=value` pairs, percent-encoded for a query and for a form alike.
pub(super) fn form(fields: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in fields {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_encoded() {
        assert_eq!(
            form(&[("a", "b c"), ("d", "é&=:/")]),
            "a=b%20c&d=%C3%A9%26%3D%3A%2F"
        );
        assert_eq!(form(&[]), "");
    }
}
