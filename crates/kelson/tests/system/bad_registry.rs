//! A registry that misbehaves: it speaks HTTP/1.1 by hand, so that it can break every rule.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::BodyExt;
use kelson_image::serve::Registry as Content;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How a request is answered.
pub(crate) enum Reply {
    /// As a registry with the content would.
    Good,
    /// With this status line and these headers (without the last empty line), this body, and then
    /// the end of the connection.
    Raw(String, Bytes),
    /// With this head, and these bytes over and over until so many are sent or nobody reads.
    Flood(String, u64),
    /// Not at all, with the connection open.
    Silence,
    /// The connection is closed.
    Hangup,
}

type Rule = dyn Fn(&str) -> Reply + Send + Sync;

/// A misbehaving registry on loopback; ends when dropped.
pub(crate) struct BadRegistry {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl BadRegistry {
    /// Serves `content` where `rule`, which is given a request's path, says `Good`.
    pub(crate) async fn start(
        content: Content,
        rule: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let content = Arc::new(content);
        let rule: Arc<Rule> = Arc::new(rule);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (content, rule) = (Arc::clone(&content), Arc::clone(&rule));
                // A client that goes away is what some cases are about.
                connections.spawn(async move { drop(connection(stream, &content, &*rule).await) });
            }
        });
        Ok(Self { address, task })
    }

    /// The full reference of an image here.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }
}

impl Drop for BadRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers one request; connections are never used again.
async fn connection(mut stream: TcpStream, content: &Content, rule: &Rule) -> anyhow::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..count]);
    }
    let head = String::from_utf8(head)?;
    let mut words = head.split(' ');
    let (method, path) = words.next().zip(words.next()).context("no request line")?;
    match rule(path) {
        Reply::Good => {
            let mut request = http::Request::builder().method(method).uri(path);
            for line in head.lines().skip(1) {
                if let Some((name, value)) = line.split_once(": ") {
                    request = request.header(name, value);
                }
            }
            let (parts, body) = content.respond(&request.body(())?).into_parts();
            let body = body.collect().await?.to_bytes();
            let mut text = format!("HTTP/1.1 {}\r\n", parts.status);
            for (name, value) in &parts.headers {
                text.push_str(&format!("{name}: {}\r\n", value.to_str()?));
            }
            text.push_str(&format!(
                "content-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            ));
            stream.write_all(text.as_bytes()).await?;
            if method != "HEAD" {
                stream.write_all(&body).await?;
            }
        }
        Reply::Raw(head, body) => {
            stream
                .write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes())
                .await?;
            stream.write_all(&body).await?;
        }
        Reply::Flood(head, mut left) => {
            stream
                .write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes())
                .await?;
            let block = [b' '; 16 << 10];
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
                stream.write_all(&block[..count]).await?;
                left -= count as u64;
            }
        }
        Reply::Silence => std::future::pending().await,
        Reply::Hangup => {}
    }
    stream.shutdown().await?;
    Ok(())
}
