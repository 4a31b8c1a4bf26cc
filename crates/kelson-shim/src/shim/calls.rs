//! Connections and the calls they bring.

use std::os::fd::AsFd;

use rustix::event::epoll::EventFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::conn::{Conn, Role};
use super::{Shim, internal, refusal};
use crate::proto::frame::Kind;
use crate::proto::{
    Call, Event, Family, OLDEST_VERSION, PodState, Refusal, RefusalKind, Reply, Request, VERSION,
};

/// The most connections at once.
const MAX_CONNECTIONS: usize = 256;

/// The most of these that carry input and output, or have not yet sent all of it: others find room.
const MAX_STREAMS: usize = 192;

/// The part of a request that every version has.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

fn parse(payload: &[u8]) -> Result<Call, Refusal> {
    let unreadable = |error: serde_json::Error| Refusal {
        kind: RefusalKind::Invalid,
        message: format!("the request cannot be read: {error}"),
    };
    match serde_json::from_slice::<Request>(payload) {
        Ok(request) if (OLDEST_VERSION..=VERSION).contains(&request.version) => Ok(request.call),
        other => {
            let Versioned { version } = serde_json::from_slice(payload).map_err(unreadable)?;
            if (OLDEST_VERSION..=VERSION).contains(&version) {
                return other.map(|request| request.call).map_err(unreadable);
            }
            let message = format!(
                "this shim speaks versions {OLDEST_VERSION} to {VERSION} of its protocol, the \
                 request has version {version}"
            );
            Err(Refusal {
                kind: RefusalKind::Version,
                message,
            })
        }
    }
}

impl Shim {
    /// Accepts all who wait.
    pub(super) fn accept(&mut self) {
        while let Ok((socket, _)) = self.pod.listener.accept() {
            let serial = self.serial();
            let full = self.connections.len() >= MAX_CONNECTIONS;
            let Ok(conn) = Conn::new(socket.into(), serial, Role::Request, &self.poll) else {
                continue;
            };
            self.connections.insert(serial, conn);
            if full {
                let message = format!("the shim has {MAX_CONNECTIONS} calls under way; try again");
                self.refuse(
                    serial,
                    Refusal {
                        kind: RefusalKind::Busy,
                        message,
                    },
                );
            }
        }
    }

    pub(super) fn connection_ready(&mut self, serial: u64, flags: EventFlags) {
        let Some(conn) = self.connections.get_mut(&serial) else {
            return;
        };
        if flags.contains(EventFlags::OUT) && conn.flush(&self.poll).is_err() {
            return self.close(serial);
        }
        if !conn.is_blocked() {
            match conn.role {
                Role::Closing => return self.close(serial),
                Role::Exec(exec) if flags.contains(EventFlags::OUT) => self.exec_resume(exec),
                Role::Attach(container) if flags.contains(EventFlags::OUT) => {
                    self.attach_resume(container, serial);
                }
                _ => {}
            }
        }
        if flags.contains(EventFlags::IN) {
            let Some(conn) = self.connections.get_mut(&serial) else {
                return;
            };
            if conn.receive().is_err() {
                return self.close(serial);
            }
            self.received(serial);
        }
        if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            self.close(serial);
        }
    }

    /// Does what completely received frames ask for.
    pub(super) fn received(&mut self, serial: u64) {
        let Some(conn) = self.connections.get_mut(&serial) else {
            return;
        };
        let frame = match (conn.role, conn.frame()) {
            (Role::Exec(exec), Ok(_)) => return self.exec_input(exec),
            (Role::Attach(container), Ok(_)) => return self.attach_input(container, serial),
            (Role::Closing, _) | (_, Ok(None)) => return,
            (Role::Request, Ok(Some(frame))) if frame.kind == Kind::Message => frame,
            (_, Ok(Some(frame))) => {
                let message = format!("a {:?} frame is out of turn", frame.kind);
                return self.refuse(
                    serial,
                    Refusal {
                        kind: RefusalKind::Invalid,
                        message,
                    },
                );
            }
            (_, Err(error)) => {
                return self.refuse(serial, refusal(RefusalKind::Invalid, &error));
            }
        };
        let call = parse(conn.payload(&frame));
        conn.consume(&frame);
        conn.role = Role::Waiting;
        match call.and_then(|call| self.call(serial, call)) {
            Ok(Some(reply)) => self.reply(serial, &reply),
            Ok(None) => {}
            Err(refusal) => self.refuse(serial, refusal),
        }
    }

    /// Does a call, or begins it and returns nothing yet.
    fn call(&mut self, serial: u64, call: Call) -> Result<Option<Reply>, Refusal> {
        match call {
            Call::State => Ok(Some(Reply::State(self.state()))),
            Call::Events => {
                let state = Reply::State(self.state());
                if let Some(conn) = self.connections.get_mut(&serial) {
                    conn.role = Role::Events;
                    if conn.message(&state, &self.poll).is_err() {
                        self.close(serial);
                    }
                }
                Ok(None)
            }
            Call::Start(_) | Call::Exec(_) if self.ending.is_some() => Err(Refusal {
                kind: RefusalKind::Invalid,
                message: "the pod is being shut down".to_owned(),
            }),
            Call::Start(request) => self.start(serial, *request).map(|()| None),
            Call::Exec(request) => self.exec(serial, *request).map(|()| None),
            Call::Attach(request) => self.attach(serial, request).map(|()| None),
            Call::Socket(family) => self.socket(serial, family).map(|()| None),
            Call::Signal(request) => self.signal(request).map(|()| Some(Reply::Done)),
            Call::Reopen(id) => self.reopen(id).map(|()| Some(Reply::Done)),
            Call::Forget(id) => self.forget(id).map(|()| Some(Reply::Done)),
            Call::Shutdown => {
                self.shut_down(Some(serial));
                Ok(None)
            }
        }
    }

    fn state(&self) -> PodState {
        let mut containers = self.ended.clone();
        containers.extend(
            self.containers
                .values()
                .filter_map(|container| container.state()),
        );
        PodState {
            shim: self.pod.ready.clone(),
            containers,
        }
    }

    pub(super) fn refuse(&mut self, serial: u64, refusal: Refusal) {
        self.reply(serial, &Reply::Refused(refusal));
    }

    /// Sends the last message of a connection.
    pub(super) fn reply(&mut self, serial: u64, reply: &Reply) {
        let Some(conn) = self.connections.get_mut(&serial) else {
            return;
        };
        conn.role = Role::Closing;
        conn.set_reading(false, &self.poll);
        if conn.message(reply, &self.poll).is_err() || !conn.is_blocked() {
            self.connections.remove(&serial);
        }
    }

    /// Tells every stream of events; one that is not read is dropped.
    pub(super) fn broadcast(&mut self, event: &Event) {
        let poll = &self.poll;
        self.connections
            .retain(|_, conn| conn.role != Role::Events || conn.message(event, poll).is_ok());
    }

    /// Drops a connection, and what lives only for it.
    pub(super) fn close(&mut self, serial: u64) {
        match self.connections.remove(&serial).map(|conn| conn.role) {
            Some(Role::Exec(exec)) => self.exec_cancelled(exec),
            Some(Role::Attach(container)) => self.attach_gone(container, serial),
            _ => {}
        }
    }

    /// Refuses one more connection for input and output when there are too many of them.
    pub(super) fn room_for_stream(&self) -> Result<(), Refusal> {
        let streams = self
            .connections
            .values()
            .filter(|conn| matches!(conn.role, Role::Exec(_) | Role::Attach(_) | Role::Closing));
        if streams.count() < MAX_STREAMS {
            return Ok(());
        }
        Err(Refusal {
            kind: RefusalKind::Busy,
            message: format!(
                "the pod has {MAX_STREAMS} sessions of exec and attach; end one of them first"
            ),
        })
    }

    /// Makes a socket in the pod's network namespace. Whoever asks connects it: nothing here waits.
    fn socket(&mut self, serial: u64, family: Family) -> Result<(), Refusal> {
        let family = match family {
            Family::Inet => AddressFamily::INET,
            Family::Inet6 => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .map_err(|error| internal("make a socket", error))?;
        if let Some(mut conn) = self.connections.remove(&serial) {
            // A peer that cannot be told has gone.
            let _ = conn.message_with(&Reply::Done, socket.as_fd());
        }
        Ok(())
    }

    /// Keeps waiting for a descriptor, as a refusal when that is not possible.
    pub(super) fn watched(result: rustix::io::Result<()>) -> Result<(), Refusal> {
        result.map_err(|error| internal("wait for a new process", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_are_refused_whatever_they_ask() {
        let kind = |text: &str| parse(text.as_bytes()).unwrap_err().kind;
        assert_eq!(
            kind(r#"{"version":3,"call":{"teleport":{}}}"#),
            RefusalKind::Version
        );
        assert_eq!(
            kind(r#"{"version":0,"call":"state"}"#),
            RefusalKind::Version
        );
        assert_eq!(
            kind(r#"{"version":1,"call":{"teleport":{}}}"#),
            RefusalKind::Invalid
        );
        assert_eq!(kind(r#"{"call":"state"}"#), RefusalKind::Invalid);
        assert_eq!(kind("\u{0}"), RefusalKind::Invalid);
        assert!(matches!(
            parse(br#"{"version":1,"call":"state"}"#),
            Ok(Call::State)
        ));
    }
}
