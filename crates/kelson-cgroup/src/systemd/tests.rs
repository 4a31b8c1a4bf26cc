//! The driver's logic against a systemd that is a thread at the other end of a socket pair.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use super::bus::MANAGER;
use super::wire::testing::message;
use super::wire::{Message, PREFIX};
use super::*;

const SHORT: Duration = Duration::from_secs(5);

/// What the fake says to a call, as whole messages.
type Answer = Vec<Vec<u8>>;

/// Calls as they came: the member and the whole message.
type Asked = Vec<(String, Vec<u8>)>;

fn text(value: &str) -> Vec<u8> {
    let mut body = Writer::default();
    body.text(value);
    body.0
}

fn returns(serial: u32, body: &[u8]) -> Vec<u8> {
    let fields: &[(u8, &str, &str)] = if body.is_empty() {
        &[]
    } else {
        &[(8, "g", "s")]
    };
    message(false, 2, fields, Some(serial), body)
}

fn refuses(serial: u32, name: &str) -> Vec<u8> {
    let fields = [(4, "s", name), (8, "g", "s")];
    message(false, 3, &fields, Some(serial), &text("because"))
}

/// The signal that a job has ended.
fn removed(job: &str, result: &str) -> Vec<u8> {
    let mut body = Writer::default();
    body.u32(1);
    body.text(job);
    body.text("a.scope");
    body.text(result);
    let fields = [
        (1, "o", "/org/freedesktop/systemd1"),
        (2, "s", MANAGER),
        (3, "s", "JobRemoved"),
        (8, "g", "uoss"),
    ];
    message(false, 4, &fields, None, &body.0)
}

/// A fake that answers each call in turn; what it was asked comes out at its end.
fn fake(
    answers: impl IntoIterator<Item = fn(u32) -> Answer> + Send + 'static,
) -> (Bus, JoinHandle<Asked>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let answers: Vec<_> = answers.into_iter().collect();
    let thread = std::thread::spawn(move || {
        let mut reader = BufReader::new(theirs.try_clone().unwrap());
        let mut theirs = theirs;
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert!(line.starts_with("\0AUTH EXTERNAL 3"), "{line:?}");
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "BEGIN\r\n");
        assert_eq!(reader.buffer(), b"", "a call may be read only after this");
        theirs.write_all(b"OK 0123456789abcdef\r\n").unwrap();
        let mut asked = Vec::new();
        for answer in answers {
            let mut prefix = [0; PREFIX];
            reader.read_exact(&mut prefix).unwrap();
            let mut bytes = prefix.to_vec();
            bytes.resize(Message::length(&prefix).unwrap(), 0);
            reader.read_exact(&mut bytes[PREFIX..]).unwrap();
            let serial = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            let call = Message::decode(&bytes).unwrap();
            asked.push((call.member, bytes));
            for message in answer(serial) {
                // Everything in small parts, as a socket may.
                for part in message.chunks(7) {
                    theirs.write_all(part).unwrap();
                }
            }
        }
        asked
    });
    (Bus::begin(ours, SHORT).unwrap(), thread)
}

fn members(thread: JoinHandle<Asked>) -> Vec<String> {
    let asked = thread.join().unwrap();
    asked.into_iter().map(|(member, _)| member).collect()
}

#[test]
fn a_job_is_waited_for_even_if_it_ends_before_the_answer() {
    let (mut bus, thread) = fake([
        (|serial| {
            vec![
                removed("/job/1", "failed"),
                removed("/job/2", "done"),
                returns(serial, &text("/job/2")),
            ]
        }) as fn(u32) -> Answer,
        |serial| {
            vec![
                returns(serial, &text("/job/3")),
                removed("/job/9", "failed"),
                removed("/job/3", "done"),
            ]
        },
    ]);
    let properties = [("PIDs", Value::Pids(vec![77]))];
    start(&mut bus, "a.scope", &properties).unwrap();
    start(&mut bus, "b.scope", &properties).unwrap();
    let asked = thread.join().unwrap();
    assert_eq!(asked[0].0, "StartTransientUnit");
    let sent = |part: &[u8]| asked[0].1.windows(part.len()).any(|window| window == part);
    assert!(sent(b"a.scope\0") && sent(b"replace\0") && sent(b"PIDs\0\x02au\0"));
    assert!(sent(b"ssa(sv)a(sa(sv))\0"));
}

#[test]
fn failures_are_told_apart() {
    let (mut bus, thread) = fake([
        (|serial| {
            vec![
                returns(serial, &text("/job/1")),
                removed("/job/1", "timeout"),
            ]
        }) as fn(u32) -> Answer,
        |serial| vec![refuses(serial, EXISTS)],
        |serial| vec![returns(serial.wrapping_add(1), &[]), refuses(serial, "x.y")],
    ]);
    let job = start(&mut bus, "a.scope", &[]).unwrap_err();
    assert!(matches!(job, SystemdError::Job(result) if result == "timeout"));
    assert!(
        start(&mut bus, "a.scope", &[])
            .unwrap_err()
            .is_refusal(EXISTS)
    );
    let other = start(&mut bus, "a.scope", &[]).unwrap_err();
    assert_eq!(other.to_string(), "because (x.y)");
    drop(thread.join().unwrap());
    // It is gone now.
    assert!(matches!(
        start(&mut bus, "a.scope", &[]),
        Err(SystemdError::Lost(_))
    ));
}

#[test]
fn an_end_waits_and_forgets_a_failure() {
    let (mut bus, thread) = fake([
        (|serial| vec![returns(serial, &text("/job/1")), removed("/job/1", "done")])
            as fn(u32) -> Answer,
        |serial| vec![refuses(serial, NO_SUCH_UNIT)],
        |serial| vec![refuses(serial, NO_SUCH_UNIT)],
        |serial| vec![refuses(serial, "org.freedesktop.DBus.Error.AccessDenied")],
    ]);
    end(&mut bus, "a.scope").unwrap();
    end(&mut bus, "a.scope").unwrap();
    assert!(end(&mut bus, "a.scope").is_err());
    assert_eq!(
        members(thread),
        ["StopUnit", "ResetFailedUnit", "StopUnit", "StopUnit"]
    );
}

#[test]
fn silence_has_an_end() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"OK 1\r\n").unwrap();
    let mut bus = Bus::begin(ours, Duration::from_millis(50)).unwrap();
    assert!(matches!(
        bus.manager("GetUnit", "", &[]),
        Err(SystemdError::Timeout)
    ));

    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"REJECTED EXTERNAL\r\n").unwrap();
    let rejected = Bus::begin(ours, SHORT).unwrap_err();
    assert!(matches!(rejected, SystemdError::Rejected(text) if text == "REJECTED EXTERNAL"));

    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&[b'x'; 600]).unwrap();
    assert!(matches!(
        Bus::begin(ours, SHORT),
        Err(SystemdError::TooLong)
    ));
}

#[test]
fn only_cgroups_of_units_are_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let hierarchy = crate::Hierarchy::v2_at(root.path());
    let cgroup = Cgroup::new(&hierarchy, "/kelson/x").unwrap();
    assert!(matches!(Systemd(()).stop(&cgroup), Err(Error::Path { .. })));
    assert!(is_unit("/a.slice/b.scope") && !is_unit("/kelson/x"));
}
