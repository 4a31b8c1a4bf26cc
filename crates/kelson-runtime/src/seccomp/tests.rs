//! Filters are run here as the kernel runs them, and compared with what they should answer.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxSeccompOperator as Operator};
use proptest::prelude::*;

use super::abi::Abi;
use super::code::{AND, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, LOAD, RETURN};
use super::profile::{WITH_CAPABILITY, profile_for};
use super::*;

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

/// Runs a program on a call, and counts the instructions.
fn run_counted(program: &Program, audit: u32, number: u32, args: [u64; 6]) -> (u32, usize) {
    let mut data = vec![];
    data.extend(number.to_le_bytes());
    data.extend(audit.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    data.extend(args.iter().flat_map(|arg| arg.to_le_bytes()));
    let filter = program.filter();
    let (mut accumulator, mut at, mut count) = (0, 0, 0);
    loop {
        let libc::sock_filter { code, jt, jf, k } = filter[at];
        at += 1;
        count += 1;
        let mut branch = |taken: bool| at += usize::from(if taken { jt } else { jf });
        match code {
            LOAD => {
                let word = &data[k as usize..k as usize + 4];
                accumulator = u32::from_le_bytes(word.try_into().unwrap());
            }
            AND => accumulator &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => branch(accumulator == k),
            JUMP_GREATER => branch(accumulator > k),
            JUMP_GREATER_EQUAL => branch(accumulator >= k),
            RETURN => return (k, count),
            other => panic!("opcode {other:#x}"),
        }
    }
}

fn number(abi: Abi, name: &str) -> u32 {
    let mut found = None;
    abi.calls(|known, number| {
        if known == name {
            found = Some(number);
        }
    });
    found.unwrap_or_else(|| panic!("{abi:?} has no {name}"))
}

fn run(program: &Program, abi: Abi, name: &str, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    run_counted(program, abi.audit(), number(abi, name), all).0
}

fn parse(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

fn x86(json: &str) -> Program {
    compile_for(Machine::X86_64, &parse(json)).unwrap()
}

fn default_for(machine: Machine, capabilities: &[Capability]) -> Program {
    let capabilities: HashSet<_> = capabilities.iter().copied().collect();
    compile_for(machine, &profile_for(machine, &capabilities)).unwrap()
}

#[test]
fn the_default_profile() {
    let plain = default_for(Machine::X86_64, &[]);
    for (name, args, expected) in [
        ("read", &[][..], ALLOW),
        ("file_setattr", &[], ENOSYS),
        ("openat2", &[], ALLOW),
        ("ptrace", &[], ALLOW),
        ("arch_prctl", &[], ALLOW),
        ("mount", &[], EPERM),
        ("unshare", &[], EPERM),
        ("setns", &[], EPERM),
        ("bpf", &[], EPERM),
        ("keyctl", &[], EPERM),
        ("add_key", &[], EPERM),
        ("userfaultfd", &[], EPERM),
        ("io_uring_setup", &[], EPERM),
        ("kexec_load", &[], EPERM),
        ("reboot", &[], EPERM),
        ("open_by_handle_at", &[], EPERM),
        ("clone", &[0x0001_1200], ALLOW),
        ("clone", &[0x1000_0000], EPERM),
        ("clone", &[0x0002_0000], EPERM),
        ("clone", &[0x4000_0011], EPERM),
        ("clone", &[0x0200_0000], EPERM),
        ("clone3", &[], ENOSYS),
        ("personality", &[0], ALLOW),
        ("personality", &[8], ALLOW),
        ("personality", &[0xffff_ffff], ALLOW),
        ("personality", &[0x0004_0000], EPERM),
        ("personality", &[0xffff_ffff_ffff_ffff], EPERM),
        ("socket", &[1], ALLOW),
        ("socket", &[37], ALLOW),
        ("socket", &[38], EPERM),
        ("socket", &[39], ALLOW),
        ("socket", &[40], EPERM),
        ("socket", &[41], ALLOW),
    ] {
        assert_eq!(
            run(&plain, Abi::X86_64, name, args),
            expected,
            "{name} {args:x?}"
        );
    }
    let all = |number| run_counted(&plain, Abi::X86_64.audit(), number, [0; 6]).0;
    assert_eq!(all(5000), ENOSYS);
    assert_eq!(all(u32::MAX), ENOSYS);
    // Not the numbers of x32 without its bit.
    assert_eq!(all(520), ENOSYS);
    assert_eq!(run(&plain, Abi::X32, "ioctl", &[]), ALLOW);
    assert_eq!(run(&plain, Abi::X32, "mount", &[]), EPERM);
    assert_eq!(run(&plain, Abi::X86, "socketcall", &[1]), ALLOW);
    assert_eq!(run(&plain, Abi::X86, "chown32", &[]), ALLOW);
    assert_eq!(run(&plain, Abi::X86, "mount", &[]), EPERM);
    assert_eq!(run(&plain, Abi::Aarch64, "read", &[]), KILL);
}

#[test]
fn capabilities_open_calls() {
    let admin = default_for(
        Machine::X86_64,
        &[Capability::SysAdmin, Capability::SysTime],
    );
    for (name, expected) in [
        ("mount", ALLOW),
        ("unshare", ALLOW),
        ("clone3", ALLOW),
        ("clock_settime", ALLOW),
        ("reboot", EPERM),
        ("acct", EPERM),
    ] {
        assert_eq!(run(&admin, Abi::X86_64, name, &[]), expected, "{name}");
    }
    assert_eq!(run(&admin, Abi::X86_64, "clone", &[0x1000_0000]), ALLOW);
}

#[test]
fn the_default_profile_elsewhere() {
    let arm = default_for(Machine::Aarch64, &[]);
    assert_eq!(run(&arm, Abi::Aarch64, "newfstatat", &[]), ALLOW);
    assert_eq!(run(&arm, Abi::Aarch64, "clone", &[0x1000_0000]), EPERM);
    assert_eq!(run(&arm, Abi::Arm, "cacheflush", &[]), ALLOW);
    assert_eq!(run(&arm, Abi::Arm, "sync_file_range2", &[]), ALLOW);
    assert_eq!(run_counted(&arm, Abi::Arm.audit(), 600, [0; 6]).0, ENOSYS);
    assert_eq!(run(&arm, Abi::X86_64, "read", &[]), KILL);
    let riscv = default_for(Machine::Riscv64, &[]);
    assert_eq!(run(&riscv, Abi::Riscv64, "riscv_flush_icache", &[]), ALLOW);
    assert_eq!(run(&riscv, Abi::Riscv64, "mount", &[]), EPERM);
}

#[test]
fn every_name_of_the_profile_is_a_call_somewhere() {
    let all: HashSet<_> = WITH_CAPABILITY
        .iter()
        .map(|(capability, _)| *capability)
        .collect();
    let mut known = HashSet::new();
    for abi in [Abi::X86_64, Abi::X86, Abi::Aarch64, Abi::Arm, Abi::Riscv64] {
        abi.calls(|name, _| {
            known.insert(name.to_owned());
        });
    }
    for machine in [Machine::X86_64, Machine::Aarch64, Machine::Riscv64] {
        for rule in profile_for(machine, &all).syscalls().as_ref().unwrap() {
            for name in rule.names() {
                assert!(known.contains(name), "{name}");
            }
        }
    }
}

#[test]
fn lookup_is_short() {
    let program = default_for(Machine::X86_64, &[]);
    assert!(program.filter().len() < 1000, "{}", program.filter().len());
    let longest = (0..600)
        .map(|number| run_counted(&program, Abi::X86_64.audit(), number, [0; 6]).1)
        .max();
    assert!(longest.unwrap() <= 30, "{longest:?}");
}

#[test]
fn actions_and_defaults() {
    for (action, errno, expected) in [
        ("SCMP_ACT_KILL", None, 0),
        ("SCMP_ACT_KILL_THREAD", None, 0),
        ("SCMP_ACT_KILL_PROCESS", None, 0x8000_0000),
        ("SCMP_ACT_TRAP", None, 0x0003_0000),
        ("SCMP_ACT_ERRNO", None, EPERM),
        ("SCMP_ACT_ERRNO", Some(38), ENOSYS),
        ("SCMP_ACT_TRACE", Some(7), 0x7ff0_0007),
        ("SCMP_ACT_LOG", None, 0x7ffc_0000),
        ("SCMP_ACT_NOTIFY", None, 0x7fc0_0000),
    ] {
        let errno = errno.map_or_else(String::new, |e: u32| format!(r#","errnoRet":{e}"#));
        let program = x86(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {{"names":["getpid"],"action":"{action}"{errno}}}]}}"#
        ));
        assert_eq!(
            run(&program, Abi::X86_64, "getpid", &[]),
            expected,
            "{action}"
        );
        assert_eq!(run(&program, Abi::X86_64, "file_setattr", &[]), ALLOW);
        assert_eq!(program.needs_listener(), action == "SCMP_ACT_NOTIFY");
        // Not listed, so not covered.
        assert_eq!(run(&program, Abi::X86, "getpid", &[]), KILL);
        assert_eq!(run(&program, Abi::X32, "getpid", &[]), KILL);
        assert_eq!(
            run_counted(&program, Abi::X86_64.audit(), u32::MAX, [0; 6]).0,
            ALLOW
        );
    }
}

#[test]
fn which_rule_counts() {
    let program = x86(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5,"syscalls":[
        {"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW",
         "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
        {"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":7,
         "args":[{"index":0,"value":2,"op":"SCMP_CMP_LT"}]},
        {"names":["write"],"action":"SCMP_ACT_TRAP",
         "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
        {"names":["write"],"action":"SCMP_ACT_ALLOW"},
        {"names":["write"],"action":"SCMP_ACT_LOG"},
        {"names":["open"],"action":"SCMP_ACT_ERRNO","errnoRet":5},
        {"names":["close"],"action":"SCMP_ACT_ALLOW","args":[
         {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]},
        {"names":["lseek"],"action":"SCMP_ACT_ALLOW","args":[
         {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":5,"value":2,"op":"SCMP_CMP_NE"}]}
        ]}"#,
    );
    for (name, args, expected) in [
        ("read", &[1][..], ALLOW),
        ("read", &[0], 0x0005_0007),
        ("read", &[2], 0x0005_0005),
        ("write", &[1], ALLOW),
        ("open", &[], 0x0005_0005),
        ("close", &[1], ALLOW),
        ("close", &[2], ALLOW),
        ("close", &[3], 0x0005_0005),
        ("lseek", &[1, 0, 0, 0, 0, 3], ALLOW),
        ("lseek", &[1, 0, 0, 0, 0, 2], 0x0005_0005),
        ("lseek", &[2, 0, 0, 0, 0, 3], 0x0005_0005),
        ("mmap", &[], ENOSYS),
        ("stat", &[], 0x0005_0005),
    ] {
        assert_eq!(
            run(&program, Abi::X86_64, name, args),
            expected,
            "{name} {args:?}"
        );
    }
}

#[test]
fn calls_behind_one_number() {
    let with = |default: &str, rule: &str| {
        x86(&format!(
            r#"{{"defaultAction":"{default}","architectures":["SCMP_ARCH_X86"],
                "syscalls":[{rule}]}}"#
        ))
    };
    let deny = with(
        "SCMP_ACT_ALLOW",
        r#"{"names":["socket","semop"],"action":"SCMP_ACT_ERRNO"}"#,
    );
    assert_eq!(run(&deny, Abi::X86, "socket", &[]), EPERM);
    assert_eq!(run(&deny, Abi::X86, "socketcall", &[1]), EPERM);
    assert_eq!(run(&deny, Abi::X86, "socketcall", &[2]), ALLOW);
    assert_eq!(run(&deny, Abi::X86, "ipc", &[1]), EPERM);
    let condition = r#""args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]"#;
    let deny_some = with(
        "SCMP_ACT_ALLOW",
        &format!(r#"{{"names":["socket"],"action":"SCMP_ACT_ERRNO",{condition}}}"#),
    );
    assert_eq!(run(&deny_some, Abi::X86, "socketcall", &[1]), EPERM);
    let allow_some = with(
        "SCMP_ACT_ERRNO",
        &format!(r#"{{"names":["socket"],"action":"SCMP_ACT_ALLOW",{condition}}}"#),
    );
    assert_eq!(run(&allow_some, Abi::X86, "socket", &[1]), ALLOW);
    assert_ne!(run(&allow_some, Abi::X86, "socketcall", &[1]), ALLOW);
}

#[test]
fn bad_filters() {
    let error = |json: &str| compile_for(Machine::X86_64, &parse(json)).unwrap_err();
    assert!(matches!(
        error(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#),
        SeccompError::Notify(_)
    ));
    for (rule, expected) in [
        (
            r#"{"names":[""],"action":"SCMP_ACT_ERRNO"}"#,
            SeccompError::EmptyName,
        ),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":65536}"#,
            SeccompError::Errno(65536),
        ),
        (
            r#"{"names":["write"],"action":"SCMP_ACT_NOTIFY"}"#,
            SeccompError::Notify("used for write"),
        ),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[
                {"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}"#,
            SeccompError::Argument {
                name: "read".to_owned(),
                index: 6,
            },
        ),
    ] {
        let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#);
        assert_eq!(error(&json), expected);
    }
    let many = format!(
        r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {{"names":[{}"x"],"action":"SCMP_ACT_ERRNO"}}]}}"#,
        r#""x","#.repeat(MAX_RULES)
    );
    assert_eq!(error(&many), SeccompError::TooManyRules);
    let condition = |value| {
        format!(
            r#"{{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[
                {{"index":0,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#
        )
    };
    let rules: Vec<_> = (0..900).map(condition).collect();
    let long = format!(
        r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#,
        rules.join(",")
    );
    assert!(matches!(error(&long), SeccompError::TooLong(4097..)));
}

#[test]
fn flags_of_the_filter() {
    let flags = |list: &str| x86(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW"{list}}}"#)).flags();
    assert_eq!(flags(""), 4);
    assert_eq!(flags(r#","flags":[]"#), 0);
    let all = r#","flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC"]"#;
    assert_eq!(flags(all), 2);
}

#[test]
fn bytes_and_back() {
    let program = default_for(Machine::X86_64, &[]);
    let bytes = program.to_bytes();
    let back = Program::from_bytes(&bytes).unwrap();
    assert_eq!(back.to_bytes(), bytes);
    assert_eq!(
        (back.flags(), back.filter().len()),
        (4, program.filter().len())
    );
    assert!(Program::from_bytes(&bytes[..bytes.len() - 1]).is_none());
    assert!(Program::from_bytes(&bytes[..4]).is_none());
    assert!(Program::from_bytes(&vec![0; 4 + 8 * 4097]).is_none());
}

#[test]
fn the_kernel_takes_the_default_profile() {
    let program = compile(&default_profile(&HashSet::new())).unwrap();
    let thread = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        kelson_sys::process::load_seccomp(program.filter(), program.flags().into()).unwrap();
        // Root would succeed without the filter. This thread ends with it.
        rustix::process::chroot("/").unwrap_err()
    });
    assert_eq!(thread.join().unwrap(), rustix::io::Errno::PERM);
}

/// What a condition should say.
fn holds(operator: Operator, argument: u64, value: u64, value_two: u64) -> bool {
    match operator {
        Operator::ScmpCmpNe => argument != value,
        Operator::ScmpCmpLt => argument < value,
        Operator::ScmpCmpLe => argument <= value,
        Operator::ScmpCmpEq => argument == value,
        Operator::ScmpCmpGe => argument >= value,
        Operator::ScmpCmpGt => argument > value,
        Operator::ScmpCmpMaskedEq => argument & value == value_two,
    }
}

fn operator() -> impl Strategy<Value = Operator> {
    prop_oneof![
        Just(Operator::ScmpCmpNe),
        Just(Operator::ScmpCmpLt),
        Just(Operator::ScmpCmpLe),
        Just(Operator::ScmpCmpEq),
        Just(Operator::ScmpCmpGe),
        Just(Operator::ScmpCmpGt),
        Just(Operator::ScmpCmpMaskedEq),
    ]
}

/// Numbers whose halves are often equal, or next to each other.
fn word() -> impl Strategy<Value = u64> {
    let half = prop_oneof![
        0_u64..3,
        Just(0xffff_ffff),
        any::<u32>().prop_map(u64::from)
    ];
    (half.clone(), half).prop_map(|(high, low)| high << 32 | low)
}

proptest! {
    #[test]
    fn operators(
        conditions in proptest::collection::vec((operator(), word(), word()), 1..6),
        args in proptest::array::uniform6(word()),
        wide in any::<bool>(),
    ) {
        let list: Vec<_> = conditions.iter().enumerate().map(|(index, (op, value, two))| {
            format!(r#"{{"index":{index},"value":{value},"valueTwo":{two},"op":"{op}"}}"#)
        }).collect();
        let program = x86(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],"syscalls":[
                {{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{}]}}]}}"#,
            list.join(",")
        ));
        let low = |value: u64| if wide { value } else { value & 0xffff_ffff };
        let expected = conditions.iter().zip(args).all(|((op, value, two), arg)| {
            holds(*op, low(arg), low(*value), low(*two))
        });
        let abi = if wide { Abi::X86_64 } else { Abi::X86 };
        let args = args.map(low);
        let answer = run(&program, abi, "read", &args);
        prop_assert_eq!(answer, if expected { ALLOW } else { EPERM });
    }

    #[test]
    fn any_set_of_calls(
        picked in proptest::collection::vec(any::<proptest::sample::Index>(), 1..200),
        default in prop_oneof![Just("SCMP_ACT_ERRNO"), Just("SCMP_ACT_LOG")],
    ) {
        let mut calls = Vec::new();
        Abi::X86_64.calls(|name, number| calls.push((name, number)));
        let picked: HashSet<_> = picked.iter().map(|index| *index.get(&calls)).collect();
        let names: Vec<_> = picked.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let program = x86(&format!(
            r#"{{"defaultAction":"{default}","architectures":["SCMP_ARCH_X32"],"syscalls":[
                {{"names":[{}],"action":"SCMP_ACT_ALLOW"}}]}}"#,
            names.join(",")
        ));
        let last = picked.iter().map(|(_, number)| *number).max().unwrap();
        for number in 0..600 {
            let expected = if picked.iter().any(|(_, known)| *known == number) {
                ALLOW
            } else if default == "SCMP_ACT_LOG" {
                0x7ffc_0000
            } else if number > last {
                ENOSYS
            } else {
                EPERM
            };
            let answer = run_counted(&program, Abi::X86_64.audit(), number, [0; 6]).0;
            prop_assert_eq!(answer, expected, "{}", number);
        }
        for (name, _) in picked {
            prop_assert_eq!(run(&program, Abi::X32, name, &[]), ALLOW);
        }
    }

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Some(program) = Program::from_bytes(&bytes) {
            prop_assert_eq!(program.to_bytes(), bytes);
        }
    }
}
