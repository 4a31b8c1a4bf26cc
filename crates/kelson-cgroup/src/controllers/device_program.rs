//! A [`DeviceSet`] as an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
//!
//! The kernel runs it with a context of three u32: access in the upper and kind in the lower half
//! of the first, then major and minor. It returns 1 to allow and 0 to deny.

use super::device_set::{DeviceSet, Kind};
use crate::Access;

/// Registers: the context; kind, access, major, minor of the request; scratch.
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 0;
const RESULT: u8 = 0;

// Opcodes (linux/bpf.h): class, operation, operand.
const LOAD_U32: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Encodes one instruction: `struct bpf_insn` as a little-endian u64.
fn insn(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(from << 4 | to) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(value.cast_unsigned()) << 32
}

/// The kernel's bits of an access.
fn bits(access: Access) -> i32 {
    i32::from(access.mknod) | i32::from(access.read) << 1 | i32::from(access.write) << 2
}

/// Compiles the set. Without branches backwards, at most 11 instructions for each exception.
pub(super) fn compile(set: &DeviceSet) -> Vec<u64> {
    let mut program = vec![
        insn(LOAD_U32, KIND, CONTEXT, 0, 0),
        insn(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        insn(AND, KIND, 0, 0, 0xffff),
        insn(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        insn(LOAD_U32, MAJOR, CONTEXT, 4, 0),
        insn(LOAD_U32, MINOR, CONTEXT, 8, 0),
    ];
    for (key, access) in &set.exceptions {
        // Numbers beyond i32 do not exist (20 bits at most), and would be sign-extended.
        let number = |n: Option<u32>| n.map(|n| i32::try_from(n).unwrap_or(i32::MAX));
        let kind = match key.kind {
            Kind::Block => 1,
            Kind::Char => 2,
        };
        let mut checks = vec![(JUMP_IF_NOT_EQUAL, KIND, kind)];
        checks.extend(number(key.major).map(|major| (JUMP_IF_NOT_EQUAL, MAJOR, major)));
        checks.extend(number(key.minor).map(|minor| (JUMP_IF_NOT_EQUAL, MINOR, minor)));
        // Where exceptions allow, all that is requested has to be in them; where they deny, any.
        let (mask, leave_if) = if set.allow {
            (bits(*access), JUMP_IF_EQUAL)
        } else {
            (!bits(*access) & bits(Access::ALL), JUMP_IF_NOT_EQUAL)
        };
        let mut left = checks.len() + 5;
        for (jump, register, value) in checks {
            left -= 1;
            program.push(insn(jump, register, 0, offset(left), value));
        }
        program.extend([
            insn(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0),
            insn(AND, SCRATCH, 0, 0, mask),
            insn(leave_if, SCRATCH, 0, 2, 0),
            insn(MOVE, RESULT, 0, 0, i32::from(!set.allow)),
            insn(EXIT, 0, 0, 0, 0),
        ]);
    }
    program.push(insn(MOVE, RESULT, 0, 0, i32::from(set.allow)));
    program.push(insn(EXIT, 0, 0, 0, 0));
    program
}

/// At most the eight instructions of one exception.
fn offset(instructions: usize) -> i16 {
    i16::try_from(instructions).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::device_set::tests::rule;

    /// Runs a program as the kernel would.
    fn run(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> u64 {
        let context = [access << 16 | kind, major, minor];
        let mut r = [0_u64; 10];
        let mut at = 0;
        loop {
            let bytes = program[at].to_le_bytes();
            let (code, to, from) = (
                bytes[0],
                usize::from(bytes[1] & 15),
                usize::from(bytes[1] >> 4),
            );
            let offset = i16::from_le_bytes([bytes[2], bytes[3]]);
            let value = i64::from(i32::from_le_bytes(bytes[4..].try_into().unwrap())) as u64;
            at += 1;
            let jump = match code {
                LOAD_U32 => {
                    assert_eq!(from, usize::from(CONTEXT));
                    r[to] = u64::from(context[usize::try_from(offset / 4).unwrap()]);
                    false
                }
                MOVE_REGISTER => {
                    r[to] = r[from];
                    false
                }
                MOVE => {
                    r[to] = value;
                    false
                }
                AND => {
                    r[to] &= value;
                    false
                }
                SHIFT_RIGHT => {
                    r[to] >>= value;
                    false
                }
                JUMP_IF_EQUAL => r[to] == value,
                JUMP_IF_NOT_EQUAL => r[to] != value,
                EXIT => return r[0],
                other => panic!("unknown opcode {other:#x}"),
            };
            if jump {
                at += usize::try_from(offset).unwrap();
            }
        }
    }

    fn allowed(rules: &[&str], request: &str) -> bool {
        let rules: Vec<_> = rules.iter().map(|text| rule(text)).collect();
        let program = compile(&DeviceSet::from_rules(&rules).unwrap());
        let request = rule(&format!("allow {request}"));
        let kind = if request.kind == crate::DeviceKind::Block {
            1
        } else {
            2
        };
        let access = bits(request.access).cast_unsigned();
        run(
            &program,
            kind,
            access,
            request.major.unwrap(),
            request.minor.unwrap(),
        ) == 1
    }

    #[test]
    fn deny_by_default() {
        let rules = [
            "deny a *:* rwm",
            "allow c *:* m",
            "allow c 1:3 rw",
            "allow b 8:* r",
        ];
        for (request, expected) in [
            ("c 1:3 r", true),
            ("c 1:3 rw", true),
            ("c 1:3 m", true),
            ("c 1:5 r", false),
            ("c 9:9 m", true),
            ("c 9:9 rm", false),
            ("b 1:3 r", false),
            ("b 8:77 r", true),
            ("b 8:77 rw", false),
            ("b 9:77 r", false),
        ] {
            assert_eq!(allowed(&rules, request), expected, "{request}");
        }
    }

    #[test]
    fn allow_by_default() {
        let rules = ["allow a *:* rwm", "deny b 8:0 w"];
        for (request, expected) in [
            ("c 1:3 rwm", true),
            ("b 8:0 r", true),
            ("b 8:0 rw", false),
            ("b 8:1 w", true),
        ] {
            assert_eq!(allowed(&rules, request), expected, "{request}");
        }
    }
}
