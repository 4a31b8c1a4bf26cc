//! `Exec` and `Attach`: checks the request and answers an address of the streaming server.

use kelson_cri::v1;
use kelson_pod::{Container, ContainerState};
use kelson_streaming::{Attach, Exec, Streams, TokenError};
use tonic::Code;

use crate::Server;
use crate::error::VerbError;

impl From<TokenError> for VerbError {
    fn from(error: TokenError) -> Self {
        let code = match error {
            TokenError::TooMany => Code::ResourceExhausted,
            TokenError::Random(_) => Code::Internal,
        };
        Self::new(code, &error)
    }
}

impl Server {
    pub(super) fn container_exec(
        &self,
        request: v1::ExecRequest,
    ) -> Result<v1::ExecResponse, VerbError> {
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        };
        let mut mistakes = mistakes(streams);
        if request.cmd.first().is_none_or(String::is_empty) {
            mistakes.push("cmd: there is no program to run");
        }
        refuse(&mistakes)?;
        let (_, container) = self.container(&request.container_id)?;
        running(&container)?;
        let url = self.services.streaming.exec(Exec {
            container: container.id.to_string(),
            command: request.cmd,
            streams,
        })?;
        Ok(v1::ExecResponse { url })
    }

    pub(super) fn container_attach(
        &self,
        request: &v1::AttachRequest,
    ) -> Result<v1::AttachResponse, VerbError> {
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        };
        refuse(&mistakes(streams))?;
        let (_, container) = self.container(&request.container_id)?;
        running(&container)?;
        let url = self.services.streaming.attach(Attach {
            container: container.id.to_string(),
            streams,
        })?;
        Ok(v1::AttachResponse { url })
    }
}

fn mistakes(streams: Streams) -> Vec<&'static str> {
    let mut mistakes = Vec::new();
    if !(streams.stdin || streams.stdout || streams.stderr) {
        mistakes.push("stdin, stdout, stderr: at least one must be true");
    }
    if streams.tty && streams.stderr {
        mistakes.push("tty, stderr: cannot both be true, a terminal has one output");
    }
    mistakes
}

fn refuse(mistakes: &[&str]) -> Result<(), VerbError> {
    if mistakes.is_empty() {
        Ok(())
    } else {
        Err(VerbError::invalid(mistakes.join("; ")))
    }
}

fn running(container: &Container) -> Result<(), VerbError> {
    if matches!(container.state, ContainerState::Running { .. }) {
        return Ok(());
    }
    let text = format!("container {} does not run; start it first", container.id);
    Err(VerbError::with(Code::FailedPrecondition, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_about_streams_are_told() {
        let none = Streams::default();
        assert_eq!(mistakes(none).len(), 1);
        let both = Streams {
            stderr: true,
            tty: true,
            ..none
        };
        assert_eq!(mistakes(both).len(), 1);
        let good = Streams {
            stdout: true,
            tty: true,
            ..none
        };
        assert_eq!(mistakes(good), [""; 0]);
        assert_eq!(refuse(&["a", "b"]).unwrap_err().to_string(), "a; b");
    }
}
