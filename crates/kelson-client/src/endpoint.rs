//! Where a runtime listens: from a flag, the environment or the default, as a path of a unix socket.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where `kelson serve` listens unless it is told otherwise.
pub const DEFAULT_ENDPOINT: &str = "/run/kelson/kelson.sock";

/// Variables of the environment that name an endpoint, the first one first. The second is crictl's.
const VARIABLES: [&str; 2] = ["KELSON_ENDPOINT", "CONTAINER_RUNTIME_ENDPOINT"];

/// The unix socket of a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(PathBuf);

/// The text does not name a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?}, from {origin}, is no endpoint: give the absolute path of a unix socket, such as \
     unix://{DEFAULT_ENDPOINT}"
)]
pub struct EndpointError {
    text: String,
    origin: String,
}

impl Endpoint {
    /// The endpoint of `flag`, else of the environment as `variable` reads it, else the default.
    pub fn find(
        flag: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, EndpointError> {
        if let Some(text) = flag {
            return Self::parse(text, "the command line");
        }
        for name in VARIABLES {
            if let Some(text) = variable(name).filter(|text| !text.is_empty()) {
                return Self::parse(&text, name);
            }
        }
        Ok(Self(PathBuf::from(DEFAULT_ENDPOINT)))
    }

    /// `unix:///path`, `unix:/path` or `/path`; `origin` says where the text is from.
    pub fn parse(text: &str, origin: &str) -> Result<Self, EndpointError> {
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"));
        let path = Path::new(path.unwrap_or(text));
        if path.is_absolute() && path.file_name().is_some() {
            Ok(Self(path.to_owned()))
        } else {
            Err(EndpointError {
                text: text.to_owned(),
                origin: origin.to_owned(),
            })
        }
    }

    /// The socket's path; absolute.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        let pairs: Vec<(String, String)> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        move |name| {
            pairs
                .iter()
                .find(|(k, _)| k == name)
                .map(|(_, v)| v.clone())
        }
    }

    #[test]
    fn flag_wins_over_environment_over_default() {
        let both = environment(&[
            ("CONTAINER_RUNTIME_ENDPOINT", "unix:///b.sock"),
            ("KELSON_ENDPOINT", "/a.sock"),
        ]);
        let found = |flag, env: &dyn Fn(&str) -> Option<String>| {
            Endpoint::find(flag, env).unwrap().to_string()
        };
        assert_eq!(found(Some("unix:/c.sock"), &both), "unix:///c.sock");
        assert_eq!(found(None, &both), "unix:///a.sock");
        let second = environment(&[
            ("KELSON_ENDPOINT", ""),
            ("CONTAINER_RUNTIME_ENDPOINT", "unix:///b.sock"),
        ]);
        assert_eq!(found(None, &second), "unix:///b.sock");
        assert_eq!(
            found(None, &environment(&[])),
            "unix:///run/kelson/kelson.sock"
        );
    }

    #[test]
    fn what_is_no_socket_path_is_refused_with_its_origin() {
        for text in [
            "",
            "relative.sock",
            "tcp://127.0.0.1:1",
            "unix://host.sock",
            "/",
        ] {
            let error = Endpoint::find(None, environment(&[("KELSON_ENDPOINT", text)]));
            match (text, error) {
                ("", found) => assert!(found.is_ok()),
                (_, found) => {
                    let message = found.unwrap_err().to_string();
                    assert!(message.contains("KELSON_ENDPOINT"), "{message}");
                }
            }
        }
    }
}
