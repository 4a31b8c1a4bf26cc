//! The crate against the cgroups of the machine that runs the tests, as root: whatever version it
//! has, and its cgroup2 mount too where that is empty beside v1.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kelson_cgroup::{
    Access, Cgroup, DeviceKind, DeviceRule, Error, Hierarchy, Resources, Result, Version,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

/// How long what happens at once may take: more where a machine is emulated (`KELSON_TEST_SLOW`).
static LONG: LazyLock<Duration> = LazyLock::new(|| {
    let slow = std::env::var("KELSON_TEST_SLOW").ok();
    Duration::from_secs(10) * slow.and_then(|times| times.parse().ok()).unwrap_or(1)
});

/// A cgroup with a name of its own; killed and removed at the end.
struct Guard(Cgroup);

impl std::ops::Deref for Guard {
    type Target = Cgroup;
    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.kill(*LONG).unwrap();
        self.0.remove().unwrap();
        if let Some((parent, _)) = self.0.path()[1..].rsplit_once('/') {
            // Shared by the tests of this process: the last one removes it.
            let _ = Cgroup::new(self.0.hierarchy(), parent).unwrap().remove();
        }
    }
}

fn guard(hierarchy: &Hierarchy) -> Guard {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let path = format!("/kelson-test-{}-{number}/leaf", std::process::id());
    let guard = Guard(Cgroup::new(hierarchy, &path).unwrap());
    guard.create().unwrap();
    assert!(guard.exists());
    guard
}

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// The machine's own hierarchy.
fn machine() -> Option<Hierarchy> {
    root().then(|| Hierarchy::detect().unwrap())
}

/// A cgroup2 mount, with or without controllers.
fn unified() -> Option<Hierarchy> {
    if !root() {
        return None;
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    if line.is_none() {
        eprintln!("skipped: needs a cgroup2 mount");
    }
    line.map(|line| Hierarchy::v2_at(line.split(' ').nth(4).unwrap().as_ref()))
}

/// A shell that waits for [`go`] before it runs `script`, in the cgroup.
fn shell(cgroup: &Cgroup, script: &str) -> Child {
    let child = Command::new("sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    cgroup.add(child.id()).unwrap();
    child
}

fn go(child: &mut Child) {
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + *LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn life(hierarchy: &Hierarchy) {
    let cgroup = guard(hierarchy);
    cgroup.create().unwrap();
    assert_eq!(cgroup.pids().unwrap(), []);
    assert!(!cgroup.populated().unwrap());
    let mut child = shell(&cgroup, "sleep 1000");
    assert_eq!(cgroup.pids().unwrap(), [child.id()]);
    assert!(cgroup.populated().unwrap());

    let error = cgroup.remove().unwrap_err();
    assert!(
        matches!(error, Error::NotEmpty { count: 1, .. }),
        "{error:?}"
    );
    assert!(cgroup.exists() || hierarchy.version() == Version::V1);
    cgroup.create().unwrap();

    cgroup.freeze().unwrap();
    assert!(cgroup.frozen().unwrap());
    go(&mut child);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(
        cgroup.pids().unwrap().len(),
        1,
        "a frozen shell forks nothing"
    );
    cgroup.thaw().unwrap();
    assert!(!cgroup.frozen().unwrap());
    wait_until("the shell goes on", || cgroup.pids().unwrap().len() == 2);

    // Kills what is frozen, too.
    cgroup.freeze().unwrap();
    cgroup.kill(*LONG).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(!cgroup.populated().unwrap());
    cgroup.kill(Duration::ZERO).unwrap();

    cgroup.remove().unwrap();
    cgroup.remove().unwrap();
    assert!(!cgroup.exists());
    assert!(!cgroup.populated().unwrap());
    assert_eq!(cgroup.pids().unwrap(), []);
    cgroup.kill(*LONG).unwrap();
    assert!(cgroup.stats().unwrap_err().is_not_found());
}

#[test]
fn life_on_this_machine() {
    machine().iter().for_each(life);
}

#[test]
fn life_on_v2() {
    unified().iter().for_each(life);
}

fn many_die(hierarchy: &Hierarchy) {
    let cgroup = guard(hierarchy);
    // On v2 a cgroup whose children have controllers has no processes itself.
    let outer = cgroup.child("c").unwrap();
    let nested = cgroup.child("a").unwrap().child("b").unwrap();
    outer.create().unwrap();
    nested.create().unwrap();
    let limit = Resources {
        pids_limit: Some(300),
        ..Resources::default()
    };
    cgroup.apply(&limit).unwrap();
    // Ten processes that fork without end, in the cgroup and beneath.
    let bomb = "for i in 1 2 3 4 5; do (while :; do (sleep 0.01; sleep 0.01) & done) & done; wait";
    let mut children = [shell(&outer, bomb), shell(&nested, bomb)];
    children.iter_mut().for_each(go);
    wait_until("they fork", || cgroup.pids().unwrap().len() > 50);
    cgroup.kill(*LONG).unwrap();
    assert_eq!(cgroup.pids().unwrap(), []);
    for mut child in children {
        // By the signal, or before it, when it could not fork any more.
        child.wait().unwrap();
    }
    cgroup.remove().unwrap();
    assert!(!nested.exists());
}

#[test]
fn a_fork_bomb_dies_on_this_machine() {
    machine().iter().for_each(many_die);
}

#[test]
fn a_fork_bomb_dies_on_v2() {
    // Without the pids controller nothing would bound the bomb.
    let limited = |h: &Hierarchy| {
        let cgroup = guard(h);
        let limit = Resources {
            unified: [("pids.max".to_owned(), "9".to_owned())].into(),
            ..Resources::default()
        };
        cgroup.apply(&limit).is_ok()
    };
    unified().iter().filter(|h| limited(h)).for_each(many_die);
}

#[test]
fn a_signal_reaches_all() {
    for hierarchy in machine().iter().chain(&unified()) {
        let cgroup = guard(hierarchy);
        // On v2 a cgroup whose children have controllers has no processes itself.
        let children = ["a", "b"].map(|name| {
            let nested = cgroup.child(name).unwrap();
            nested.create().unwrap();
            shell(&nested, ":")
        });
        cgroup.signal(Signal::TERM).unwrap();
        for mut child in children {
            assert_eq!(child.wait().unwrap().signal(), Some(15));
        }
    }
}

#[test]
fn a_group_beneath_processes_is_killed_alone() {
    for hierarchy in machine().iter().chain(&unified()) {
        let cgroup = guard(hierarchy);
        let mut outside = shell(&cgroup, ":");
        let group = cgroup.child("group").unwrap();
        group.create_group().unwrap();
        let mut inside = shell(&group, ":");
        group.kill(*LONG).unwrap();
        assert_eq!(inside.wait().unwrap().signal(), Some(9));
        group.remove().unwrap();
        assert_eq!(cgroup.pids().unwrap(), [outside.id()]);
        go(&mut outside);
        assert!(outside.wait().unwrap().success());
    }
}

#[test]
fn a_thread_enters_by_itself() {
    let Some(hierarchy) = machine() else { return };
    let cgroup = guard(&hierarchy);
    let entry = cgroup.entry().unwrap();
    assert_eq!(
        entry.clone_into().is_some(),
        hierarchy.version() == Version::V2
    );
    if hierarchy.version() == Version::V2 {
        return;
    }
    let thread = std::thread::spawn(move || {
        entry.enter().unwrap();
        std::fs::read_to_string("/proc/thread-self/cgroup").unwrap()
    });
    let own = thread.join().unwrap();
    let v1 = |line: &&str| !line.starts_with("0::");
    assert!(
        own.lines()
            .filter(v1)
            .all(|line| line.ends_with(cgroup.path())),
        "{own}"
    );
}

#[test]
fn limits_and_statistics() {
    let Some(hierarchy) = machine() else { return };
    let cgroup = guard(&hierarchy);
    let mut r = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(150_000),
        cpu_period: Some(100_000),
        cpuset_cpus: Some("0".to_owned()),
        memory_limit: Some(64 << 20),
        memory_reservation: Some(32 << 20),
        pids_limit: Some(40),
        ..Resources::default()
    };
    cgroup.apply(&r).unwrap();
    let stats = cgroup.stats().unwrap();
    assert_eq!(stats.memory.limit, Some(64 << 20));
    assert_eq!(stats.memory.swap_limit.unwrap_or(0), 0);
    assert_eq!(stats.pids.limit, Some(40));

    // Up, with swap, and down again: whichever has to be written first.
    for (memory, swap) in [(256, 300), (32, 40), (128, 128)] {
        r.memory_limit = Some(memory << 20);
        r.memory_swap = Some(swap << 20);
        cgroup.apply(&r).unwrap();
        assert_eq!(
            cgroup.stats().unwrap().memory.limit,
            Some(memory as u64 * (1 << 20))
        );
    }
    for (quota, period) in [(1_000_000, 1_000_000), (2_000, 10_000), (-1, 100_000)] {
        r.cpu_quota = Some(quota);
        r.cpu_period = Some(period);
        cgroup.apply(&r).unwrap();
    }
    r.memory_limit = Some(-1);
    r.memory_swap = None;
    cgroup.apply(&r).unwrap();
    assert_eq!(cgroup.stats().unwrap().memory.limit, None);

    let script = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; echo done; sleep 1000";
    let mut child = shell(&cgroup, script);
    go(&mut child);
    let mut done = [0; 5];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut done)
        .unwrap();
    let stats = cgroup.stats().unwrap();
    assert!(stats.cpu.usage_ns > 5_000_000, "{stats:?}");
    assert!(stats.memory.usage > 0 && stats.memory.working_set <= stats.memory.usage);
    // The kernel adds these up every two seconds.
    wait_until("faults are counted", || {
        cgroup.stats().unwrap().memory.page_faults > 0
    });
    assert!((1..=2).contains(&stats.pids.current));
    let usage = cgroup.usage().unwrap();
    assert!(usage.cpu.usage_ns >= stats.cpu.usage_ns);
    assert!(usage.memory.usage > 0 && usage.memory.page_faults >= stats.memory.page_faults);
    cgroup.kill(*LONG).unwrap();
    child.wait().unwrap();

    let bad = Resources {
        memory_limit: Some(9 << 20),
        memory_swap: Some(8 << 20),
        ..Resources::default()
    };
    assert!(matches!(
        cgroup.apply(&bad).unwrap_err(),
        Error::Limit { .. }
    ));
    let bad = Resources {
        cpu_period: Some(1),
        ..Resources::default()
    };
    assert!(matches!(cgroup.apply(&bad).unwrap_err(), Error::Io { .. }));
}

fn readable(fd: &OwnedFd, wait: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    let wait = Timespec::try_from(wait).unwrap();
    rustix::event::poll(&mut fds, Some(&wait)).unwrap() == 1
}

#[test]
fn an_oom_is_seen() {
    let Some(hierarchy) = machine() else { return };
    let cgroup = guard(&hierarchy);
    let limit = Resources {
        memory_limit: Some(16 << 20),
        ..Resources::default()
    };
    cgroup.apply(&limit).unwrap();
    let watch = cgroup.oom_watch().unwrap().expect("this machine can tell");
    assert!(!readable(&watch, Duration::ZERO));
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    let mut child = shell(&cgroup, "exec tail /dev/zero");
    go(&mut child);
    assert!(readable(&watch, *LONG));
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(cgroup.oom_kills().unwrap(), 1);
}

fn rule(allow: bool, kind: DeviceKind, number: Option<(u32, u32)>) -> DeviceRule {
    let (major, minor) = number.unzip();
    DeviceRule {
        allow,
        kind,
        major,
        minor,
        access: Access::ALL,
    }
}

fn devices(hierarchy: &Hierarchy) {
    let cgroup = guard(hierarchy);
    let apply = |rules: &[DeviceRule]| -> Result<()> {
        cgroup.apply(&Resources {
            devices: rules.to_vec(),
            ..Resources::default()
        })
    };
    let opens = |device: &str| {
        let mut child = shell(&cgroup, &format!("exec 3< {device}"));
        go(&mut child);
        child.wait().unwrap().success()
    };
    assert!(opens("/dev/zero") && opens("/dev/null"));
    let nothing = rule(false, DeviceKind::All, None);
    let null = rule(true, DeviceKind::Char, Some((1, 3)));
    let zero = rule(true, DeviceKind::Char, Some((1, 5)));
    apply(&[nothing, null]).unwrap();
    assert!(opens("/dev/null") && !opens("/dev/zero"));
    apply(&[nothing, zero]).unwrap();
    assert!(!opens("/dev/null") && opens("/dev/zero"));
    apply(&[
        rule(true, DeviceKind::All, None),
        rule(false, DeviceKind::Char, Some((1, 5))),
    ])
    .unwrap();
    assert!(opens("/dev/null") && !opens("/dev/zero"));
    apply(&[rule(true, DeviceKind::All, None)]).unwrap();
    assert!(opens("/dev/null") && opens("/dev/zero"));
}

#[test]
fn devices_on_this_machine() {
    machine().iter().for_each(devices);
}

#[test]
fn devices_on_v2() {
    unified().iter().for_each(devices);
}
