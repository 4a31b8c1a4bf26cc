//! What the streaming server does with pods: commands, attached containers and ports.

use kelson_pod::{ContainerId, ExecExit, Output, PodId, Pods, Session};
use kelson_streaming::{Attach, Backend, BackendError, Exec, Io};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::rest::Rest;

/// The pods, as the streaming server sees them. Ids are those that the verbs have checked.
#[derive(Clone)]
pub struct PodStreams {
    pods: Pods,
    rest: Rest,
}

impl PodStreams {
    /// Over these pods; `rest` is told of finished sessions.
    pub fn new(pods: Pods, rest: Rest) -> Self {
        Self { pods, rest }
    }
}

impl Backend for PodStreams {
    type Socket = TcpStream;

    async fn exec(&self, exec: &Exec, io: &mut Io) -> Result<i32, BackendError> {
        let container: ContainerId = exec.container.parse()?;
        let command = exec.command.clone();
        let streams = exec.streams;
        let session = self
            .pods
            .exec_stream(&container, command, streams.tty, streams.stdin, None)
            .await?;
        Ok(follow(session, io).await?.exit_code)
    }

    async fn attach(&self, attach: &Attach, io: &mut Io) -> Result<(), BackendError> {
        let container: ContainerId = attach.container.parse()?;
        let session = self.pods.attach(&container, attach.streams.stdin).await?;
        follow(session, io).await.map(drop)
    }

    async fn dial(&self, pod: &str, port: u16) -> Result<TcpStream, BackendError> {
        let pod: PodId = pod.parse()?;
        Ok(self.pods.dial(&pod, port).await?)
    }

    fn ended(&self) {
        self.rest.worked();
    }
}

/// Connects a client to a session until the process has ended and everything is written.
async fn follow(mut session: Session, io: &mut Io) -> Result<ExecExit, BackendError> {
    let resizer = session.resizer();
    let input = session.take_stdin();
    let (stdin, sizes) = (io.stdin.take(), io.sizes.take());
    let feed = async {
        if let (Some(mut client), Some(mut process)) = (stdin, input) {
            // A client that goes away has no more input, and a process that has closed its own
            // wants none; neither ends the session.
            while let Ok(Some(piece)) = client.next().await {
                if process.write(&piece).await.is_err() {
                    break;
                }
            }
            let _ = process.close().await;
        }
    };
    let resize = async {
        if let Some(mut sizes) = sizes {
            while let Some(size) = sizes.next().await {
                // It fails when the process has ended.
                if resizer.resize(size.rows, size.columns).await.is_err() {
                    break;
                }
            }
        }
    };
    let (stdout, stderr) = (&mut io.stdout, &mut io.stderr);
    let output = async {
        loop {
            let (writer, bytes) = match session.next().await? {
                Output::Stdout(bytes) => (&mut *stdout, bytes),
                Output::Stderr(bytes) => (&mut *stderr, bytes),
                Output::Exited(exit) => return Ok::<_, BackendError>(exit),
            };
            if let Some(writer) = writer {
                writer.write_all(&bytes).await?;
            }
        }
    };
    // Only the output ends; what feeds it may be over long before.
    let feed = async {
        tokio::join!(feed, resize);
        std::future::pending().await
    };
    tokio::select! {
        exit = output => exit,
        never = feed => never,
    }
}
