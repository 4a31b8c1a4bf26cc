//! The error of a verb: a gRPC code and the whole chain of causes as one line.
//!
//! This is the edge where an error becomes text. Below it every error is a type.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};

/// Longest error text that is sent to a client, in bytes; gRPC carries it in a header.
const MAX_TEXT: usize = 4096;

/// Why a verb failed, as its client sees it.
#[derive(Debug, Clone)]
pub(crate) struct VerbError {
    /// The gRPC code.
    pub(crate) code: Code,
    text: String,
}

impl VerbError {
    /// An error with the text of `error` and of all its causes.
    pub(crate) fn new(code: Code, error: &dyn Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        Self::with(code, text)
    }

    /// The request itself is wrong.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::with(Code::InvalidArgument, text.into())
    }

    /// There is no such thing.
    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        Self::with(Code::NotFound, format!("no {what} with id {id:?}"))
    }

    /// The verb took too long.
    pub(crate) fn deadline(limit: Duration) -> Self {
        Self::with(
            Code::DeadlineExceeded,
            format!("not done after {} s", limit.as_secs()),
        )
    }

    /// Any code with a text.
    pub(crate) fn with(code: Code, mut text: String) -> Self {
        if text.len() > MAX_TEXT {
            let mut end = MAX_TEXT;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push('…');
        }
        Self { code, text }
    }
}

impl fmt::Display for VerbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<VerbError> for Status {
    fn from(error: VerbError) -> Self {
        Status::new(error.code, error.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_chain_is_told_once() {
        let error = Outer(std::io::Error::other("no key"));
        assert_eq!(
            VerbError::new(Code::Internal, &error).to_string(),
            "cannot open the door: no key"
        );
    }

    #[test]
    fn a_text_of_any_length_is_cut() {
        let error = VerbError::invalid("ä".repeat(MAX_TEXT));
        assert!(error.to_string().len() <= MAX_TEXT + '…'.len_utf8());
    }
}
