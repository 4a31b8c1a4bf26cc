//! The part of CRIU's protocol that is used, as `images/rpc.proto` of CRIU 3.17 and later has it.
//! A message is one packet on a socket of packets.

use std::os::fd::OwnedFd;
use std::time::Instant;

use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// Longest answer that is read, in bytes; CRIU's own are shorter.
const LONGEST: usize = 64 << 10;

pub(crate) const DUMP: i32 = 1;
pub(crate) const NOTIFY: i32 = 6;
/// `manage_cgroups_mode`: do not look at cgroups.
pub(crate) const CGROUPS_IGNORED: i32 = 0;
/// `network_lock`: do not touch the packet filter.
pub(crate) const NETWORK_NOT_LOCKED: i32 = 3;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(int32, required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) options: Option<DumpOptions>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) notify_success: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DumpOptions {
    /// A descriptor of the peer's, which CRIU opens by the peer's procfs.
    #[prost(int32, required, tag = "1")]
    pub(crate) images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pub(crate) pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) leave_running: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub(crate) file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub(crate) log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub(crate) log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    pub(crate) notify_scripts: Option<bool>,
    #[prost(int32, optional, tag = "34")]
    pub(crate) manage_cgroups_mode: Option<i32>,
    #[prost(string, repeated, tag = "37")]
    pub(crate) external: Vec<String>,
    #[prost(uint32, optional, tag = "45")]
    pub(crate) timeout: Option<u32>,
    #[prost(int32, optional, tag = "64")]
    pub(crate) network_lock: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Answer {
    #[prost(int32, required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(bool, required, tag = "2")]
    pub(crate) success: bool,
    #[prost(message, optional, tag = "5")]
    pub(crate) notify: Option<Notify>,
    #[prost(string, optional, tag = "9")]
    pub(crate) message: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Notify {
    #[prost(string, optional, tag = "1")]
    pub(crate) script: Option<String>,
}

/// Why no answer came.
#[derive(Debug)]
pub(crate) enum Silence {
    /// CRIU closed the socket or sent what cannot be read.
    Ended,
    /// The time was over.
    TimedOut,
}

/// Sends a request.
pub(crate) fn send(socket: &OwnedFd, request: &Request) -> Result<(), Silence> {
    let bytes = request.encode_to_vec();
    let sent = rustix::io::retry_on_intr(|| rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL));
    sent.map(drop).map_err(|_| Silence::Ended)
}

/// Waits for an answer until `deadline`.
pub(crate) fn receive(socket: &OwnedFd, deadline: Instant) -> Result<Answer, Silence> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(Silence::TimedOut),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(_) => return Err(Silence::Ended),
        }
    }
    let mut buffer = vec![0; LONGEST];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())
    });
    match received {
        Ok((0, _)) | Err(_) => Err(Silence::Ended),
        Ok((count, _)) => Answer::decode(&buffer[..count]).map_err(|_| Silence::Ended),
    }
}
