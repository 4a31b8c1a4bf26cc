//! The process of a container or of an exec, checked.

use std::ffi::CString;
use std::path::PathBuf;

use kelson_sys::process::Scheduling;
use oci_spec::runtime::{
    IOPriorityClass, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, PosixRlimitType, Process, Scheduler,
};
use rustix::process::Resource;

use super::CapabilitySets;
use crate::LaunchError;

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The umask when the specification does not say.
const DEFAULT_UMASK: u32 = 0o022;

/// What a process becomes.
#[derive(Debug)]
pub(crate) struct ProcessPlan {
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
    /// The directories to look for the program in.
    pub(crate) path: String,
    pub(crate) cwd: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: u32,
    /// `None`: no capability at all.
    pub(crate) capabilities: CapabilitySets,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) no_new_privileges: bool,
    pub(crate) apparmor: Option<String>,
    pub(crate) selinux: Option<String>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) scheduling: Option<Scheduling>,
    /// Class and priority.
    pub(crate) io_priority: Option<(u16, u16)>,
    pub(crate) personality: Option<u64>,
    /// Rows and columns of the terminal.
    pub(crate) terminal_size: Option<(u16, u16)>,
}

/// A limit of a process; `None` is infinity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rlimit {
    pub(crate) kind: PosixRlimitType,
    pub(crate) resource: Resource,
    pub(crate) soft: Option<u64>,
    pub(crate) hard: Option<u64>,
}

impl ProcessPlan {
    /// Checks the process of a specification.
    pub(crate) fn new(process: &Process) -> Result<Self, LaunchError> {
        let args = strings(
            "process.args",
            process.args().as_deref().unwrap_or_default(),
        )?;
        if args.first().is_none_or(|program| program.is_empty()) {
            return Err(LaunchError::spec(
                "process.args",
                "there is no program in it",
            ));
        }
        let texts = process.env().as_deref().unwrap_or_default();
        let cwd = process.cwd().clone();
        if !cwd.is_absolute() {
            return Err(LaunchError::spec(
                "process.cwd",
                "it is not an absolute path",
            ));
        }
        let user = process.user();
        let label = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        Ok(Self {
            args,
            env: strings("process.env", texts)?,
            path: path(texts),
            cwd,
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask().unwrap_or(DEFAULT_UMASK) & 0o777,
            capabilities: process
                .capabilities()
                .as_ref()
                .map_or_else(CapabilitySets::default, CapabilitySets::new),
            rlimits: rlimits(process)?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            apparmor: label(process.apparmor_profile()),
            selinux: label(process.selinux_label()),
            oom_score_adj: process.oom_score_adj(),
            scheduling: process.scheduler().as_ref().map(scheduling),
            io_priority: process.io_priority().as_ref().map(|p| {
                let class = match p.class() {
                    IOPriorityClass::IoprioClassRt => 1,
                    IOPriorityClass::IoprioClassBe => 2,
                    IOPriorityClass::IoprioClassIdle => 3,
                };
                (class, p.priority().clamp(0, 7) as u16)
            }),
            personality: None,
            terminal_size: process.console_size().map(|size| {
                let cells = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
                (cells(size.height()), cells(size.width()))
            }),
        })
    }

    /// Takes over `linux.personality`.
    pub(crate) fn set_personality(
        &mut self,
        personality: Option<&LinuxPersonality>,
    ) -> Result<(), LaunchError> {
        let Some(personality) = personality else {
            return Ok(());
        };
        if personality
            .flags()
            .as_ref()
            .is_some_and(|flags| !flags.is_empty())
        {
            return Err(LaunchError::spec(
                "linux.personality.flags",
                "flags are not supported",
            ));
        }
        self.personality = Some(match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        });
        Ok(())
    }
}

fn strings(field: &str, list: &[String]) -> Result<Vec<CString>, LaunchError> {
    list.iter()
        .enumerate()
        .map(|(i, text)| {
            CString::new(text.as_str()).map_err(|_| {
                LaunchError::spec(format!("{field}[{i}]"), "there is a NUL byte in it")
            })
        })
        .collect()
}

fn path(env: &[String]) -> String {
    let path = env.iter().rev().find_map(|text| text.strip_prefix("PATH="));
    path.filter(|path| !path.is_empty())
        .unwrap_or(DEFAULT_PATH)
        .to_owned()
}

fn rlimits(process: &Process) -> Result<Vec<Rlimit>, LaunchError> {
    let mut limits: Vec<Rlimit> = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let field = || format!("process.rlimits[{}]", limits.len());
        if limits.iter().any(|l| l.kind == limit.typ()) {
            return Err(LaunchError::spec(field(), "the type is listed twice"));
        }
        if limit.soft() > limit.hard() {
            return Err(LaunchError::spec(
                field(),
                "the soft limit is above the hard one",
            ));
        }
        let value = |n: u64| (n != u64::MAX).then_some(n);
        limits.push(Rlimit {
            kind: limit.typ(),
            resource: resource(limit.typ()),
            soft: value(limit.soft()),
            hard: value(limit.hard()),
        });
    }
    Ok(limits)
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

fn scheduling(scheduler: &Scheduler) -> Scheduling {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    Scheduling {
        policy,
        flags: scheduler
            .flags()
            .iter()
            .flatten()
            .map(flag)
            .fold(0, |all, bit| all | bit),
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).max(0).cast_unsigned(),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(changes: serde_json::Value) -> Result<ProcessPlan, LaunchError> {
        let mut json = json!({"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"});
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        ProcessPlan::new(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn defaults_are_the_fields_own() {
        let plan = parse(json!({})).unwrap();
        assert_eq!(plan.umask, 0o022);
        assert_eq!(plan.path, DEFAULT_PATH);
        assert_eq!(plan.capabilities, CapabilitySets::default());
    }

    #[test]
    fn the_last_path_wins() {
        assert_eq!(
            parse(json!({"env": ["PATH=/a", "PATH=/b"]})).unwrap().path,
            "/b"
        );
    }

    #[test]
    fn mistakes_are_refused() {
        let limit = json!({"type": "RLIMIT_CORE", "hard": 1, "soft": 1});
        for changes in [
            json!({"args": []}),
            json!({"args": [""]}),
            json!({"args": ["a\u{0}b"]}),
            json!({"env": ["A=\u{0}"]}),
            json!({"cwd": "here"}),
            json!({"rlimits": [limit, limit]}),
            json!({"rlimits": [{"type": "RLIMIT_CORE", "hard": 1, "soft": 2}]}),
        ] {
            assert!(
                matches!(parse(changes.clone()), Err(LaunchError::Spec { .. })),
                "{changes}"
            );
        }
    }

    #[test]
    fn the_largest_number_is_infinity() {
        let changes = json!({"rlimits": [{"type": "RLIMIT_CORE", "hard": u64::MAX, "soft": 5}]});
        let limit = parse(changes).unwrap().rlimits[0];
        assert_eq!((limit.soft, limit.hard), (Some(5), None));
    }
}
