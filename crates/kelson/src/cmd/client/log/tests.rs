//! Logs as runtimes write them, in real files.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::Write;

use super::record::{Record, Stream};
use super::*;
use crate::ui;

const T: &str = "2026-11-20T10:00:00.123456789Z";

fn printed(lines: &[&str], printer: &mut Printer) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut io = Io {
        out: &mut out,
        err: &mut err,
        watched: false,
        now: ui::now,
    };
    for line in lines {
        printer.print(line.as_bytes(), &mut io).unwrap();
    }
    (
        String::from_utf8(out).unwrap(),
        String::from_utf8(err).unwrap(),
    )
}

#[test]
fn records_are_read_with_any_number_of_tags() {
    let line = format!("{T} stderr P:other:tags a  b ");
    let record = Record::parse(line.as_bytes()).unwrap();
    assert_eq!(record.time, T);
    assert_eq!((record.stream, record.partial), (Stream::Stderr, true));
    assert_eq!(record.text, b"a  b ");
    for empty in [format!("{T} stdout F"), format!("{T} stdout F ")] {
        assert_eq!(Record::parse(empty.as_bytes()).unwrap().text, b"");
    }
    for wrong in [
        "",
        "x",
        "2026 stdout",
        "2026 stdin F text",
        "2026 stdout X text",
    ] {
        assert_eq!(Record::parse(wrong.as_bytes()), None, "{wrong}");
    }
}

#[test]
fn partial_records_are_joined_for_each_stream() {
    let lines = [
        format!("{T} stdout P one "),
        format!("{T} stderr P bad "),
        format!("{T} stdout F line"),
        format!("{T} stderr F luck"),
        format!("{T} stdout F "),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let (out, err) = printed(&lines, &mut Printer::default());
    assert_eq!((out.as_str(), err.as_str()), ("one line\n\n", "bad luck\n"));
    let (out, _) = printed(&lines, &mut Printer::new(true, None));
    assert_eq!(out, format!("{T} one line\n{T} \n"));
}

#[test]
fn older_records_are_left_out_and_foreign_lines_shown() {
    let lines = [
        "2026-11-20T09:00:00Z stdout F old",
        "2026-11-20T12:00:00+01:00 stdout F new",
        "?",
    ];
    let since = Some("2026-11-20T10:30:00Z".parse().unwrap());
    let (out, err) = printed(&lines, &mut Printer::new(false, since));
    assert_eq!(out, "new\n");
    assert_eq!(err, "not a CRI log record: ?\n");
}

fn tail_of(text: &str, count: usize) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    fs::write(&path, text).unwrap();
    let mut log = LogFile::open(&path).unwrap();
    log.seek_to_last(count).unwrap();
    let mut lines = Vec::new();
    log.read_new(&mut |line| {
        lines.push(
            String::from_utf8(line.to_vec())
                .unwrap()
                .split_off(T.len() + 8),
        );
        Ok(())
    })
    .unwrap();
    lines
}

#[test]
fn the_tail_counts_lines_of_output_not_records() {
    let text: String = ["F a", "P b1", "P b2", "F b3", "F c"]
        .iter()
        .map(|record| format!("{T} stdout {record}\n"))
        .collect();
    assert_eq!(tail_of(&text, 1), ["F c"]);
    assert_eq!(tail_of(&text, 2), ["P b1", "P b2", "F b3", "F c"]);
    assert_eq!(tail_of(&text, 9).len(), 5);
    assert!(tail_of(&text, 0).is_empty());
}

#[test]
fn an_endless_record_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let file = File::create(&path).unwrap();
    file.set_len(5 << 20).unwrap();
    let mut log = LogFile::open(&path).unwrap();
    let error = log.read_new(&mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("4194304 bytes"), "{error}");
}

#[tokio::test]
async fn following_loses_nothing_across_creation_rotation_and_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let log = LogFile::open(&path).unwrap();
    let done = Cell::new(false);
    let write = |file: &mut File, text: &str| writeln!(file, "{T} stdout F {text}").unwrap();
    let writer = async {
        let pause = || tokio::time::sleep(Duration::from_millis(30));
        pause().await;
        let mut file = File::create(&path).unwrap();
        write(&mut file, "first");
        pause().await;
        // Half a record, its end later.
        write!(file, "{T} stdout F hal").unwrap();
        pause().await;
        writeln!(file, "f").unwrap();
        fs::rename(&path, directory.path().join("0.log.1")).unwrap();
        write(&mut file, "to the old file after its renaming");
        pause().await;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        write(&mut file, "rotated");
        pause().await;
        file.set_len(0).unwrap();
        pause().await;
        write(&mut file, "truncated");
        write(&mut file, "last");
        done.set(true);
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut io = Io {
        out: &mut out,
        err: &mut err,
        watched: false,
        now: ui::now,
    };
    let mut printer = Printer::default();
    let reader = follow(&path, log, &mut printer, &mut io, async || Ok(done.get()));
    let reader = tokio::time::timeout(Duration::from_secs(20), reader);
    let ((), result) = tokio::join!(writer, reader);
    result.unwrap().unwrap();
    let expected = "first\nhalf\nto the old file after its renaming\nrotated\ntruncated\nlast\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    assert_eq!(err, b"");
}
