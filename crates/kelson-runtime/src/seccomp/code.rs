//! Classic BPF code for a filter.
//!
//! For each `AUDIT_ARCH_*` a balanced binary search over the ranges of numbers with the same
//! verdict, so that a call passes some eight instructions. Jumps only go forwards, by at most 255
//! instructions where they are conditional.

use libc::sock_filter as Insn;
use oci_spec::runtime::{LinuxSeccompAction as Action, LinuxSeccompOperator as Operator};

use super::rules::{Condition, Rule, Section, Verdict};

// Opcodes (linux/filter.h), all on a 32-bit accumulator and a constant.
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_GREATER_EQUAL: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// In a condition: jump behind the rule. A rule is far shorter.
const FAIL: u8 = u8::MAX;

/// `SECCOMP_RET_*` with its data, which only ERRNO and TRACE have.
pub(super) fn action(action: Action, errno: u32) -> u32 {
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => 0,
        Action::ScmpActKillProcess => 0x8000_0000,
        Action::ScmpActTrap => 0x0003_0000,
        Action::ScmpActErrno => 0x0005_0000 | errno & 0xffff,
        Action::ScmpActNotify => 0x7fc0_0000,
        Action::ScmpActTrace => 0x7ff0_0000 | errno & 0xffff,
        Action::ScmpActLog => 0x7ffc_0000,
        Action::ScmpActAllow => 0x7fff_0000,
    }
}

/// The whole program. Processes of an architecture without a section are killed.
pub(super) fn program(sections: &[Section]) -> Vec<Insn> {
    let mut program = vec![statement(LOAD, ARCHITECTURE)];
    for section in sections {
        let search = search(&section.verdicts);
        program.push(branch(JUMP_EQUAL, section.audit, 1, 0));
        program.push(statement(JUMP, distance(search.len() + 1)));
        program.push(statement(LOAD, NUMBER));
        program.extend(search);
    }
    program.push(answer(action(Action::ScmpActKill, 0)));
    program
}

fn statement(code: u16, k: u32) -> Insn {
    branch(code, k, 0, 0)
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Insn {
    Insn { code, jt, jf, k }
}

fn answer(value: u32) -> Insn {
    statement(RETURN, value)
}

/// Programs that are too long are refused in the end; here they only must not wrap around.
fn distance(instructions: usize) -> u32 {
    u32::try_from(instructions).unwrap_or(u32::MAX)
}

/// Finds the verdict for the number in the accumulator.
fn search(verdicts: &[(u32, Verdict)]) -> Vec<Insn> {
    let (below, above) = verdicts.split_at(verdicts.len() / 2);
    match (below, above) {
        ([], [(_, only), ..]) => verdict(only),
        (_, [(pivot, _), ..]) => {
            let (low, high) = (search(below), search(above));
            let mut code = Vec::with_capacity(low.len() + high.len() + 2);
            match u8::try_from(low.len()) {
                Ok(skip) => code.push(branch(JUMP_GREATER_EQUAL, *pivot, skip, 0)),
                Err(_) => code.extend([
                    branch(JUMP_GREATER_EQUAL, *pivot, 0, 1),
                    statement(JUMP, distance(low.len())),
                ]),
            }
            code.extend(low);
            code.extend(high);
            code
        }
        (_, []) => Vec::new(),
    }
}

fn verdict(verdict: &Verdict) -> Vec<Insn> {
    match verdict {
        Verdict::Answer(value) => vec![answer(*value)],
        Verdict::Rules {
            rules,
            otherwise,
            is_32_bit,
        } => {
            let mut code: Vec<_> = rules.iter().flat_map(|r| rule(r, *is_32_bit)).collect();
            code.push(answer(*otherwise));
            code
        }
    }
}

/// Answers if all conditions hold, else falls through.
fn rule(rule: &Rule, is_32_bit: bool) -> Vec<Insn> {
    let mut code = Vec::new();
    for condition in &rule.conditions {
        if is_32_bit {
            check_32(condition, &mut code);
        } else {
            check_64(condition, &mut code);
        }
    }
    code.push(answer(rule.answer));
    // At most six conditions of six instructions.
    let length = code.len();
    for (at, insn) in code.iter_mut().enumerate() {
        let behind = u8::try_from(length - at - 1).unwrap_or(FAIL);
        for jump in [&mut insn.jt, &mut insn.jf] {
            if *jump == FAIL {
                *jump = behind;
            }
        }
    }
    code
}

/// The halves of a value, high and low.
fn halves(value: u64) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
    let low = value as u32;
    ((value >> 32) as u32, low)
}

fn check_64(condition: &Condition, code: &mut Vec<Insn>) {
    let (high, low) = halves(condition.value);
    let at_low = ARGUMENTS + 8 * condition.argument;
    let load_low = statement(LOAD, at_low);
    let load_high = statement(LOAD, at_low + 4);
    // The high half decides unless it is equal; `greater` and `equal` say where to go then.
    let mut compare = |greater: u8, less: u8, low_half: Insn| {
        code.extend([
            load_high,
            branch(JUMP_GREATER, high, greater, 0),
            branch(JUMP_EQUAL, high, 0, less),
            load_low,
            low_half,
        ]);
    };
    // From the second and third instruction of a comparison to its end.
    let (past_from_1, past_from_2) = (3, 2);
    match condition.operator {
        Operator::ScmpCmpGt => {
            compare(past_from_1, FAIL, branch(JUMP_GREATER, low, 0, FAIL));
        }
        Operator::ScmpCmpGe => {
            compare(past_from_1, FAIL, branch(JUMP_GREATER_EQUAL, low, 0, FAIL));
        }
        Operator::ScmpCmpLt => {
            compare(FAIL, past_from_2, branch(JUMP_GREATER_EQUAL, low, FAIL, 0));
        }
        Operator::ScmpCmpLe => {
            compare(FAIL, past_from_2, branch(JUMP_GREATER, low, FAIL, 0));
        }
        Operator::ScmpCmpEq => code.extend([
            load_high,
            branch(JUMP_EQUAL, high, 0, FAIL),
            load_low,
            branch(JUMP_EQUAL, low, 0, FAIL),
        ]),
        Operator::ScmpCmpNe => code.extend([
            load_high,
            branch(JUMP_EQUAL, high, 0, 2),
            load_low,
            branch(JUMP_EQUAL, low, FAIL, 0),
        ]),
        Operator::ScmpCmpMaskedEq => {
            let (high_two, low_two) = halves(condition.value_two);
            masked(load_high, high, high_two, code);
            masked(load_low, low, low_two, code);
        }
    }
}

fn masked(load: Insn, mask: u32, value: u32, code: &mut Vec<Insn>) {
    if (mask, value) != (0, 0) {
        code.extend([
            load,
            statement(AND, mask),
            branch(JUMP_EQUAL, value, 0, FAIL),
        ]);
    }
}

/// Where arguments have 32 bits, the low half of a value is all that can be meant.
fn check_32(condition: &Condition, code: &mut Vec<Insn>) {
    let (_, value) = halves(condition.value);
    let load = statement(LOAD, ARGUMENTS + 8 * condition.argument);
    let check = match condition.operator {
        Operator::ScmpCmpGt => branch(JUMP_GREATER, value, 0, FAIL),
        Operator::ScmpCmpGe => branch(JUMP_GREATER_EQUAL, value, 0, FAIL),
        Operator::ScmpCmpLt => branch(JUMP_GREATER_EQUAL, value, FAIL, 0),
        Operator::ScmpCmpLe => branch(JUMP_GREATER, value, FAIL, 0),
        Operator::ScmpCmpEq => branch(JUMP_EQUAL, value, 0, FAIL),
        Operator::ScmpCmpNe => branch(JUMP_EQUAL, value, FAIL, 0),
        Operator::ScmpCmpMaskedEq => {
            return masked(load, value, halves(condition.value_two).1, code);
        }
    };
    code.extend([load, check]);
}
