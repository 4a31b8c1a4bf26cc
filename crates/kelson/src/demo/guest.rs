//! What runs inside the demo's containers: the program itself, in two small roles.
//!
//! `serve PORT` answers every HTTP request with a greeting and prints a line for each; `fetch URL`
//! gets a page and prints its body. Both use only the standard library, since a container may
//! hold nothing but this program and the libraries it is linked with.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the output of a program"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

/// Longest answer that `fetch` reads, in bytes.
const MAX_BODY: u64 = 64 << 10;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a role; the arguments are those after `demo-guest`.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let outcome = match arguments {
        [role, port] if role == "serve" => serve(port),
        [role, url] if role == "fetch" => fetch(url),
        _ => Err("usage: demo-guest serve PORT | fetch http://HOST:PORT/PATH".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Serves until SIGTERM, which the first process of a container gets only if it asks for it.
fn serve(port: &str) -> Outcome {
    let port: u16 = port.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let served =
            tokio::task::spawn_blocking(move || listen(port).map_err(|error| error.to_string()));
        tokio::select! {
            served = served => Ok(served??),
            _ = terminate.recv() => Ok(()),
        }
    });
    // The listening thread may be in the middle of waiting; it ends with the process.
    runtime.shutdown_background();
    outcome
}

fn listen(port: u16) -> Outcome {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on port {port}");
    for stream in listener.incoming() {
        let stream = stream?;
        if let Err(error) = answer(&stream) {
            eprintln!("a request failed: {error}");
        }
    }
    Ok(())
}

fn answer(mut stream: &TcpStream) -> Outcome {
    stream.set_read_timeout(Some(PATIENCE))?;
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream.take(8 << 10));
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    println!("{} from {}", first.trim_end(), peer.ip());
    let host = rustix::system::uname();
    let body = format!("hello from {}\n", host.nodename().to_string_lossy());
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

fn fetch(url: &str) -> Outcome {
    let rest = url
        .strip_prefix("http://")
        .ok_or("the URL must begin with http://")?;
    let (address, path) = rest.split_once('/').unwrap_or((rest, ""));
    print!("{}", get(address, path)?);
    Ok(())
}

/// Gets `/path` from `address` (`host:port`) over HTTP/1.0 and returns the body.
pub(super) fn get(address: &str, path: &str) -> Result<String, Box<dyn std::error::Error>> {
    let target = address
        .to_socket_addrs()?
        .next()
        .ok_or("the address means nothing")?;
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_BODY).read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or("the answer is not HTTP")?;
    if !head
        .lines()
        .next()
        .is_some_and(|status| status.contains(" 200 "))
    {
        return Err(format!(
            "the answer is not 200: {}",
            head.lines().next().unwrap_or("")
        )
        .into());
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roles_understand_each_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || answer(&listener.accept().unwrap().0).unwrap());
        assert!(get(&address, "x").unwrap().starts_with("hello from "));
        server.join().unwrap();
    }
}
