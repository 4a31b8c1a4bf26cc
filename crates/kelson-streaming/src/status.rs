//! How a process's end is told on the error stream: a `metav1.Status`, or text before `v4`.

use serde::{Deserialize, Serialize};

/// Bytes of a status, at most.
pub(crate) const MAX_STATUS: usize = 64 * 1024;
const NON_ZERO: &str = "NonZeroExitCode";
const EXIT_CODE: &str = "ExitCode";

/// How exec or attach ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The process ended with this exit code, or attach came to its end (0).
    Exited(i32),
    /// It could not be started, or could not be followed to its end.
    Failed(String),
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Status {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl Outcome {
    fn status(&self) -> Status {
        match self {
            Self::Exited(0) => Status {
                status: "Success".to_owned(),
                ..Status::default()
            },
            Self::Exited(code) => Status {
                status: "Failure".to_owned(),
                reason: NON_ZERO.to_owned(),
                message: format!("command terminated with non-zero exit code: {code}"),
                details: Some(Details {
                    causes: vec![Cause {
                        reason: EXIT_CODE.to_owned(),
                        message: code.to_string(),
                    }],
                }),
                code: None,
            },
            Self::Failed(why) => Status {
                status: "Failure".to_owned(),
                reason: "InternalError".to_owned(),
                message: format!("Internal error occurred: {why}"),
                details: None,
                code: Some(500),
            },
        }
    }

    /// What is written on the error stream; before `v4` that is the text of an error, if any.
    pub(crate) fn to_wire(&self, json: bool) -> Vec<u8> {
        let status = self.status();
        if json {
            serde_json::to_vec(&status).unwrap_or_default()
        } else {
            status.message.into_bytes()
        }
    }

    /// Reads a status; `None` when it is none.
    pub(crate) fn from_wire(bytes: &[u8]) -> Option<Self> {
        let status: Status = serde_json::from_slice(bytes).ok()?;
        if status.status == "Success" {
            return Some(Self::Exited(0));
        }
        let code = status.details.iter().flat_map(|details| &details.causes);
        let code = code
            .filter(|cause| cause.reason == EXIT_CODE && status.reason == NON_ZERO)
            .find_map(|cause| cause.message.parse().ok());
        Some(match code {
            Some(code) => Self::Exited(code),
            None => Self::Failed(status.message),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_go_round_trip() {
        for outcome in [Outcome::Exited(0), Outcome::Exited(137)] {
            assert_eq!(Outcome::from_wire(&outcome.to_wire(true)), Some(outcome));
        }
        let failed = Outcome::Failed("no such file".to_owned()).to_wire(true);
        let told = Outcome::Failed("Internal error occurred: no such file".to_owned());
        assert_eq!(Outcome::from_wire(&failed), Some(told));
        assert_eq!(Outcome::from_wire(b"oops"), None);
    }

    #[test]
    fn an_exit_code_has_the_form_that_kubectl_reads() {
        let text = String::from_utf8(Outcome::Exited(3).to_wire(true)).unwrap();
        assert_eq!(
            text,
            r#"{"status":"Failure","message":"command terminated with non-zero exit code: 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
        );
        assert_eq!(Outcome::Exited(0).to_wire(false), b"");
    }
}
