//! What containers write, in their log files.

use std::path::Path;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::world::{SOON, World, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_line_of_a_mebibyte_is_whole", long_lines),
        trial("both_streams_are_kept_apart", both_streams),
        trial("no_line_is_lost_when_the_log_is_reopened", reopened),
        trial("a_terminal_writes_to_the_log", terminal),
        trial("without_a_log_output_is_dropped", discarded),
    ]
}

/// Stream, tag and text of each line.
fn lines(path: &Path) -> Vec<(String, char, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines()
        .map(|line| {
            let mut parts = line.splitn(4, ' ');
            let stamp = parts.next().unwrap();
            assert!(stamp.len() == 30 && stamp.ends_with('Z'), "{stamp}");
            let stream = parts.next().unwrap().to_owned();
            let tag = parts.next().unwrap();
            assert!(tag == "F" || tag == "P", "{line}");
            (
                stream,
                tag.chars().next().unwrap(),
                parts.next().unwrap().to_owned(),
            )
        })
        .collect()
}

/// The text of a stream, put together as the kubelet does.
fn text(lines: &[(String, char, String)], stream: &str) -> String {
    let mut text = String::new();
    for (_, tag, part) in lines.iter().filter(|line| line.0 == stream) {
        text.push_str(part);
        if *tag == 'F' {
            text.push('\n');
        }
    }
    text
}

async fn long_lines(world: World) -> World {
    let mut pod = world.pod().await;
    let request = pod
        .sh("head -c 1048576 /bin/busybox | busybox tr -c 'a-z' x; echo; echo -n end")
        .await;
    assert_eq!(pod.exit(request.id).await.exit_code, 0);
    let lines = lines(request.log.as_ref().unwrap());
    assert!(lines.iter().all(|line| line.2.len() <= 16 << 10));
    assert_eq!(lines.len(), 64 + 1);
    assert_eq!((lines[63].1, lines[64].1), ('F', 'P'));
    let text = text(&lines, "stdout");
    assert_eq!(text.len(), (1 << 20) + 1 + 3);
    assert!(text.ends_with("\nend"));
    pod.shutdown().await;
    world
}

async fn both_streams(world: World) -> World {
    let mut pod = world.pod().await;
    let script = "seq 1 20000 & seq 20001 40000 >&2 & wait";
    let request = pod.sh(script).await;
    assert_eq!(pod.exit(request.id).await.exit_code, 0);
    let lines = lines(request.log.as_ref().unwrap());
    let numbers = |from: u32, to: u32| (from..=to).map(|n| format!("{n}\n")).collect::<String>();
    assert!(text(&lines, "stdout") == numbers(1, 20_000));
    assert!(text(&lines, "stderr") == numbers(20_001, 40_000));
    pod.shutdown().await;
    world
}

async fn reopened(world: World) -> World {
    const COUNT: u32 = 300_000;
    let mut pod = world.pod().await;
    // It takes a while, however much of it the pipe holds.
    let script =
        format!("seq 1 100000; sleep 0.3; seq 100001 200000; sleep 0.3; seq 200001 {COUNT}");
    let request = pod.sh(&script).await;
    let log = request.log.clone().unwrap();
    let mut old = Vec::new();
    for number in 0..40 {
        let to = log.with_extension(format!("{number}"));
        if std::fs::rename(&log, &to).is_err() {
            continue;
        }
        old.push(to);
        if pod.shim.reopen(request.id, SOON).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(pod.exit(request.id).await.exit_code, 0);
    let mut all = Vec::new();
    for path in old.iter().chain(log.exists().then_some(&log)) {
        all.extend(lines(path));
    }
    assert!(old.len() > 2, "{}", old.len());
    let expected: String = (1..=COUNT).map(|n| format!("{n}\n")).collect();
    assert!(text(&all, "stdout") == expected);
    pod.shutdown().await;
    world
}

async fn terminal(world: World) -> World {
    let mut pod = world.pod().await;
    let mut request = pod.request(&[
        "sh",
        "-c",
        "tty; echo err >&2; stty size; cat /proc/self/comm",
    ]);
    let process = request.spec.process_mut().as_mut().unwrap();
    process.set_terminal(Some(true));
    let size = serde_json::json!({ "height": 12, "width": 34 });
    process.set_console_size(serde_json::from_value(size).unwrap());
    pod.start(&request).await.unwrap();
    assert_eq!(pod.exit(request.id).await.exit_code, 0);
    let lines = lines(request.log.as_ref().unwrap());
    assert!(
        lines.iter().all(|line| line.0 == "stdout" && line.1 == 'F'),
        "{lines:?}"
    );
    let texts: Vec<&str> = lines.iter().map(|line| line.2.as_str()).collect();
    assert_eq!(texts, ["/dev/pts/0", "err", "12 34", "cat"]);
    pod.shutdown().await;
    world
}

async fn discarded(world: World) -> World {
    let mut pod = world.pod().await;
    let mut request = pod.request(&["sh", "-c", "seq 1 100000; exit 6"]);
    request.log = None;
    pod.start(&request).await.unwrap();
    assert_eq!(pod.exit(request.id).await.exit_code, 6);
    pod.shutdown().await;
    world
}
