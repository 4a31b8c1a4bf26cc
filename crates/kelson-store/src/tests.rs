//! Tests of the store with real files: versions, atomic batches, and a process killed while it writes.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Boat {
    name: String,
    masts: u32,
}

impl Record for Boat {
    const TABLE: &'static str = "boats";
    const VERSION: u32 = 2;

    fn upgrade(version: u32, record: serde_json::Value) -> Option<Result<Self, serde_json::Error>> {
        // Version 1 was the bare name.
        (version == 1).then(|| serde_json::from_value(record).map(|name| Boat { name, masts: 1 }))
    }
}

/// The same table as another version of the program sees it.
#[derive(Debug, Serialize, Deserialize)]
struct OldBoat(String);

impl Record for OldBoat {
    const TABLE: &'static str = "boats";
    const VERSION: u32 = 1;
}

#[derive(Debug, Serialize, Deserialize)]
struct NewBoat {
    hull: String,
}

impl Record for NewBoat {
    const TABLE: &'static str = "boats";
    const VERSION: u32 = 9;
}

fn boat(name: &str) -> Boat {
    Boat {
        name: name.into(),
        masts: 3,
    }
}

#[test]
fn records_survive_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/down/boats.redb");
    {
        let store = Store::open(&path).unwrap();
        assert_eq!(store.get::<Boat>("a").unwrap(), None);
        assert!(store.scan::<Boat>().unwrap().records.is_empty());
        store.put("b", &boat("Beagle")).unwrap();
        store.put("a", &boat("Argo")).unwrap();
        store.delete::<Boat>("missing").unwrap();
    }
    let store = Store::open(&path).unwrap();
    assert_eq!(store.get::<Boat>("a").unwrap(), Some(boat("Argo")));
    let keys: Vec<_> = store
        .scan::<Boat>()
        .unwrap()
        .records
        .into_iter()
        .map(|(k, _)| k)
        .collect();
    assert_eq!(keys, ["a", "b"]);
    store.delete::<Boat>("a").unwrap();
    assert_eq!(store.get::<Boat>("a").unwrap(), None);
}

#[test]
fn changes_of_a_batch_come_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s.redb")).unwrap();
    let mut first = Batch::new();
    first.put("a", &boat("Argo")).unwrap();
    let mut second = Batch::new();
    second
        .delete::<Boat>("a")
        .put("b", &boat("Beagle"))
        .unwrap();
    first.append(second);
    store.commit(first).unwrap();
    assert_eq!(store.get::<Boat>("a").unwrap(), None);
    assert_eq!(store.get::<Boat>("b").unwrap(), Some(boat("Beagle")));
}

#[test]
fn the_file_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let _store = Store::open(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn old_versions_are_read_and_unknown_ones_are_left_alone_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s.redb")).unwrap();
    store
        .put(
            "future",
            &NewBoat {
                hull: "steel".into(),
            },
        )
        .unwrap();
    store.put("now", &boat("Beagle")).unwrap();
    store.put("past", &OldBoat("Argo".into())).unwrap();

    let scan = store.scan::<Boat>().unwrap();
    assert_eq!(
        scan.records,
        [
            ("now".into(), boat("Beagle")),
            (
                "past".into(),
                Boat {
                    name: "Argo".into(),
                    masts: 1
                }
            )
        ]
    );
    assert_eq!(scan.unreadable.len(), 1);
    assert_eq!(scan.unreadable[0].key, "future");
    assert!(matches!(
        scan.unreadable[0].reason,
        Reason::UnknownVersion(9)
    ));
    assert!(matches!(
        store.get::<Boat>("future"),
        Err(StoreError::Unreadable(_))
    ));
    // The program that knows it still finds it.
    assert_eq!(
        store.get::<NewBoat>("future").unwrap().unwrap().hull,
        "steel"
    );
}

#[test]
fn malformed_records_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s.redb")).unwrap();
    let batch = Batch {
        changes: vec![Change {
            table: Boat::TABLE,
            key: "x".into(),
            value: Some(b"{".to_vec()),
        }],
    };
    store.commit(batch).unwrap();
    let scan = store.scan::<Boat>().unwrap();
    assert!(matches!(scan.unreadable[0].reason, Reason::Malformed(_)));
}

#[test]
fn a_record_over_the_limit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s.redb")).unwrap();
    let huge = boat(&"x".repeat(MAX_RECORD));
    assert!(matches!(
        store.put("huge", &huge),
        Err(StoreError::TooLarge { .. })
    ));
}

#[test]
fn a_second_open_says_in_use_and_a_foreign_file_says_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    let _store = Store::open(&path).unwrap();
    assert!(matches!(Store::open(&path), Err(OpenError::InUse { .. })));

    let foreign = dir.path().join("foreign.redb");
    fs::write(&foreign, "this is no database".repeat(1000)).unwrap();
    assert!(matches!(
        Store::open(&foreign),
        Err(OpenError::Damaged { .. })
    ));
    assert!(matches!(
        Store::open(Path::new("/dev/null/x")),
        Err(OpenError::Io { .. })
    ));
}

const WRITER_ENV: &str = "KELSON_STORE_TEST_WRITER";

/// Not a test of its own: the body of the process that `kill_loses_no_acknowledged_batch` kills.
#[test]
fn writer_process() {
    let Ok(path) = std::env::var(WRITER_ENV) else {
        return;
    };
    let store = Store::open(Path::new(&path)).unwrap();
    for n in 0u32.. {
        let mut batch = Batch::new();
        batch.put(&format!("left-{n:06}"), &boat("l")).unwrap();
        batch.put(&format!("right-{n:06}"), &boat("r")).unwrap();
        store.commit(batch).unwrap();
        println!("\nacknowledged {n}");
    }
}

#[test]
fn kill_loses_no_acknowledged_batch() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::writer_process", "--nocapture"])
            .env(WRITER_ENV, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut acknowledged = None;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let Ok(line) = line else { break };
            let Some(n) = line.strip_prefix("acknowledged ") else {
                continue;
            };
            acknowledged = Some(n.parse::<usize>().unwrap());
            if acknowledged >= Some(40 + round * 13) {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let acknowledged = acknowledged.expect("the writer wrote something");

        let store = Store::open(&path).unwrap();
        let keys: Vec<_> = store
            .scan::<Boat>()
            .unwrap()
            .records
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        let count = |side: &str| keys.iter().filter(|key| key.starts_with(side)).count();
        assert!(
            count("left") > acknowledged,
            "an acknowledged batch was lost"
        );
        assert_eq!(count("left"), count("right"), "half a batch was committed");
        drop(store);
        fs::remove_file(&path).unwrap();
    }
}
