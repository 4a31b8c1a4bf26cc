//! Tokens: what a client may do once, for a short while.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::backend::{Attach, Exec};

/// How long a token is good for.
pub(crate) const LIFE: Duration = Duration::from_secs(60);
/// Tokens that are good at once, at most.
pub const MAX_TOKENS: usize = 1000;
/// Bytes of chance in a token.
const BYTES: usize = 16;

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Exec(Exec),
    Attach(Attach),
    Forward(Forward),
}

/// Ports of a pod; only clients without a way to name ports need them listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) pod: String,
    pub(crate) ports: Vec<u16>,
}

impl Request {
    /// The first part of the address's path.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::Forward(_) => "portforward",
        }
    }
}

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Too many clients have asked for an address and not used it.
    #[error(
        "{MAX_TOKENS} streaming addresses are waiting to be used; try again within {} s",
        LIFE.as_secs()
    )]
    TooMany,
    /// The system gives no random bytes.
    #[error("cannot make a token")]
    Random(#[source] std::io::Error),
}

#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<String, (Instant, Request)>>);

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Instant, Request)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token for a request.
    pub(crate) fn add(&self, request: Request, now: Instant) -> Result<String, TokenError> {
        let bytes = crate::random::<BYTES>().map_err(TokenError::Random)?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let mut tokens = self.lock();
        tokens.retain(|_, (end, _)| *end > now);
        if tokens.len() >= MAX_TOKENS {
            return Err(TokenError::TooMany);
        }
        tokens.insert(token.clone(), (now + LIFE, request));
        Ok(token)
    }

    /// What a token is good for, without using it up.
    pub(crate) fn look(&self, verb: &str, token: &str, now: Instant) -> Option<Request> {
        let tokens = self.lock();
        let (end, request) = tokens.get(token)?;
        (*end > now && request.verb() == verb).then(|| request.clone())
    }

    /// Uses a token up; whether it was still good.
    pub(crate) fn take(&self, token: &str) -> bool {
        self.lock().remove(token).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward() -> Request {
        Request::Forward(Forward {
            pod: "pod".to_owned(),
            ports: Vec::new(),
        })
    }

    #[test]
    fn a_token_is_good_once_for_its_verb_and_for_a_minute() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.add(forward(), now).unwrap();
        assert!(token.len() >= 22, "{token}");
        assert_eq!(tokens.look("exec", &token, now), None);
        assert_eq!(tokens.look("portforward", "other", now), None);
        assert_eq!(tokens.look("portforward", &token, now + LIFE), None);
        assert_eq!(tokens.look("portforward", &token, now), Some(forward()));
        assert!(tokens.take(&token));
        assert!(!tokens.take(&token));
        assert_eq!(tokens.look("portforward", &token, now), None);
    }

    #[test]
    fn a_thousand_tokens_are_enough_until_they_are_old() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        for _ in 0..MAX_TOKENS {
            tokens.add(forward(), now).unwrap();
        }
        assert!(matches!(
            tokens.add(forward(), now),
            Err(TokenError::TooMany)
        ));
        tokens.add(forward(), now + LIFE).unwrap();
    }
}
