//! Measurements, run with `--ignored`: log throughput beside what dd writes to the same file
//! system, and the time of calls. They print; they do not judge, except for a wide margin.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kelson_shim::client::{Output, Session};
use kelson_shim::proto::{AttachRequest, StdinPolicy};
use libtest_mimic::Trial;

use crate::world::{SOON, World, rootfs, trial};

const MIB: u64 = 1 << 20;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("bench_log_throughput", throughput).with_ignored_flag(true),
        trial("bench_calls", calls).with_ignored_flag(true),
        trial("bench_streams", streams).with_ignored_flag(true),
    ]
}

fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / MIB as f64 / time.as_secs_f64()
}

/// What dd writes of zeros.
fn dd(dir: &Path, bytes: u64) -> f64 {
    let file = dir.join("dd");
    let begin = Instant::now();
    let status = Command::new("dd")
        .args(["if=/dev/zero", "bs=256k", "status=none"])
        .arg(format!("of={}", file.display()))
        .arg(format!("count={}", bytes / (256 << 10)))
        .status()
        .unwrap();
    assert!(status.success());
    let took = begin.elapsed();
    std::fs::remove_file(file).unwrap();
    rate(bytes, took)
}

async fn throughput(world: World) -> World {
    const TIMES: u64 = 16;
    let mut pod = world.pod().await;
    for length in [20_usize, 100, 1000] {
        let mut line = vec![b'x'; length - 1];
        line.push(b'\n');
        let data = rootfs().join("tmp.data");
        let mut file = std::fs::File::create(&data).unwrap();
        for _ in 0..(32 * MIB as usize / length / 1000) {
            file.write_all(&line.repeat(1000)).unwrap();
        }
        let bytes = file.metadata().unwrap().len() * TIMES;
        let script = format!("for i in $(seq {TIMES}); do cat /tmp.data; done");
        for round in 0..2 {
            let begin = Instant::now();
            let request = pod.sh(&script).await;
            assert_eq!(pod.exit(request.id).await.exit_code, 0);
            let took = begin.elapsed();
            let log = request.log.unwrap();
            let written = log.metadata().unwrap().len();
            assert_eq!(written, bytes + bytes / length as u64 * 40);
            std::fs::remove_file(&log).unwrap();
            let dd = dd(&pod.logs, written);
            let log_rate = rate(written, took);
            eprintln!(
                "lines of {length}, round {round}: {:.0} MiB/s of output, {log_rate:.0} MiB/s of \
                 log; dd {dd:.0} MiB/s, ratio {:.2}",
                rate(bytes, took),
                log_rate / dd
            );
        }
        std::fs::remove_file(data).unwrap();
    }
    pod.shutdown().await;
    world
}

async fn calls(world: World) -> World {
    let mut starts = Vec::new();
    let mut pods = Vec::new();
    for _ in 0..20 {
        let begin = Instant::now();
        pods.push(world.pod().await);
        starts.push(begin.elapsed());
    }
    report("a shim", starts);
    let mut pod = pods.pop().unwrap();
    let (mut starts, mut exits) = (Vec::new(), Vec::new());
    for _ in 0..50 {
        let request = pod.request(&["true"]);
        let begin = Instant::now();
        pod.start(&request).await.unwrap();
        starts.push(begin.elapsed());
        pod.exit(request.id).await;
        exits.push(begin.elapsed());
    }
    report("a container started", starts);
    report("a container started and ended", exits);
    let id = pod.sh("sleep 1000").await.id;
    let (mut execs, mut states) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let begin = Instant::now();
        let request = pod.exec_request(id, &["true"]);
        let session = pod.shim.exec(request, SOON).await.unwrap();
        session.collect(100, SOON).await.unwrap();
        execs.push(begin.elapsed());
        let begin = Instant::now();
        pod.shim.state(SOON).await.unwrap();
        states.push(begin.elapsed());
    }
    report("an exec of true", execs);
    report("the state", states);
    pods.push(pod);
    let mut ends = Vec::new();
    for pod in pods {
        let begin = Instant::now();
        pod.shutdown().await;
        ends.push(begin.elapsed());
    }
    report("a shutdown", ends);
    world
}

/// What goes through exec and attach, in both directions.
async fn streams(world: World) -> World {
    const BLOCKS: u64 = 4096;
    let pod = world.pod().await;
    let mut request = pod.request(&["sh", "-c", "read x; dd if=/dev/zero bs=256k count=1024"]);
    request.stdin = StdinPolicy::Open;
    pod.start(&request).await.unwrap();
    let id = request.id;
    let drain = async |session: &mut Session, bytes: u64| {
        let mut left = bytes;
        while left > 0 {
            match session.next().await.unwrap() {
                Output::Stdout(block) => left -= block.len() as u64,
                Output::Stderr(_) => {}
                Output::Exited(exit) => panic!("{exit:?} with {left} bytes left"),
            }
        }
    };
    for _ in 0..2 {
        let count = format!("count={BLOCKS}");
        let exec = pod.exec_request(id, &["dd", "if=/dev/zero", "bs=256k", &count]);
        let begin = Instant::now();
        let mut session = pod.shim.exec(exec, SOON).await.unwrap();
        drain(&mut session, BLOCKS << 18).await;
        let out = rate(BLOCKS << 18, begin.elapsed());
        let mut exec = pod.exec_request(id, &["dd", "of=/dev/null", "bs=256k"]);
        exec.stdin = true;
        let mut session = pod.shim.exec(exec, SOON).await.unwrap();
        let mut stdin = session.take_stdin().unwrap();
        let block = vec![0; 256 << 10];
        let begin = Instant::now();
        for _ in 0..BLOCKS {
            stdin.write(&block).await.unwrap();
        }
        stdin.close().await.unwrap();
        session.collect(1000, SOON).await.unwrap();
        let into = rate(BLOCKS << 18, begin.elapsed());
        eprintln!("exec: {out:.0} MiB/s of output, {into:.0} MiB/s of input");
    }
    let attach = AttachRequest {
        container: id,
        stdin: true,
    };
    let mut session = pod.shim.attach(attach, SOON).await.unwrap();
    session.take_stdin().unwrap().write(b"\n").await.unwrap();
    let begin = Instant::now();
    drain(&mut session, 1024 << 18).await;
    let rate = rate(1024 << 18, begin.elapsed());
    eprintln!("attach: {rate:.0} MiB/s of output, with the log");
    pod.shutdown().await;
    world
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    eprintln!(
        "{what}: median {:?}, worst {:?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
}
