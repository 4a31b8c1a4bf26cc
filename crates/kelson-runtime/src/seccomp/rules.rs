//! The rules of a filter, sorted by system call, and what they mean for one interface.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompOperator as Operator,
};

use super::abi::{ARM_PRIVATE, Abi, X32_BIT};
use super::{MAX_RULES, SeccompError, code};

/// Errno of a filter that names none.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// A comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u32,
    pub(super) operator: Operator,
    pub(super) value: u64,
    /// For `MASKED_EQ`, where `value` is the mask.
    pub(super) value_two: u64,
}

/// What is answered when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    /// `SECCOMP_RET_*` with its data.
    pub(super) answer: u32,
}

/// What happens for a range of numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Answer(u32),
    /// The first rule that holds, else the answer. Arguments have 32 or 64 bits.
    Rules {
        rules: Vec<Rule>,
        otherwise: u32,
        is_32_bit: bool,
    },
}

/// All there is to know about the processes of one `AUDIT_ARCH_*`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) audit: u32,
    /// Ascending from 0: each verdict holds from its number to before the next.
    pub(super) verdicts: Vec<(u32, Verdict)>,
}

/// A filter, by name.
pub(super) struct RuleBook<'a> {
    default: u32,
    /// Whether what is not named is refused, so that unknown calls answer ENOSYS.
    refusing: bool,
    rules: HashMap<&'a str, Vec<Rule>>,
}

impl<'a> RuleBook<'a> {
    pub(super) fn new(seccomp: &'a LinuxSeccomp) -> Result<Self, SeccompError> {
        let default = answer(seccomp.default_action(), seccomp.default_errno_ret())?;
        if seccomp.default_action() == Action::ScmpActNotify {
            return Err(SeccompError::Notify("the default action"));
        }
        let allowing = [
            Action::ScmpActAllow,
            Action::ScmpActLog,
            Action::ScmpActTrace,
        ];
        let refusing = !allowing.contains(&seccomp.default_action());
        let mut book = Self {
            default,
            refusing,
            rules: HashMap::new(),
        };
        let mut count = 0;
        for syscall in seccomp.syscalls().as_deref().unwrap_or_default() {
            let answer = answer(syscall.action(), syscall.errno_ret())?;
            for name in syscall.names() {
                count += 1;
                if count > MAX_RULES {
                    return Err(SeccompError::TooManyRules);
                }
                if name.is_empty() {
                    return Err(SeccompError::EmptyName);
                }
                // The descriptor of the listener is passed on by a write.
                if syscall.action() == Action::ScmpActNotify && name == "write" {
                    return Err(SeccompError::Notify("used for write"));
                }
                let conditions = conditions(name, syscall.args().as_deref().unwrap_or_default())?;
                let rules = book.rules.entry(name).or_default();
                if answer != default {
                    rules.extend(alternatives(conditions, answer));
                }
            }
        }
        Ok(book)
    }

    /// What the filter means for interfaces that share an `AUDIT_ARCH_*`, the native one first.
    pub(super) fn section(&self, abis: &[Abi]) -> Section {
        let audit = abis[0].audit();
        let mut verdicts = Vec::new();
        for abi in abis {
            self.add_calls(*abi, &mut verdicts);
        }
        if audit == Abi::X86_64.audit() && !abis.contains(&Abi::X32) {
            let kill = code::action(Action::ScmpActKill, 0);
            verdicts.push((X32_BIT, Verdict::Answer(kill)));
            // A tracer's way to skip a call.
            verdicts.push((u32::MAX, Verdict::Answer(self.unknown())));
        }
        verdicts.dedup_by(|later, earlier| later.1 == earlier.1);
        Section { audit, verdicts }
    }

    /// The answer for calls that are newer than the filter.
    fn unknown(&self) -> u32 {
        if self.refusing {
            code::action(Action::ScmpActErrno, ENOSYS)
        } else {
            self.default
        }
    }

    /// Adds the verdicts of one interface: for each named call, for what is between, and for what
    /// is above.
    fn add_calls(&self, abi: Abi, verdicts: &mut Vec<(u32, Verdict)>) {
        let mut named: Vec<(u32, &[Rule])> = Vec::new();
        let mut behind: Vec<(u32, Rule)> = Vec::new();
        abi.calls(|name, number| {
            named.extend(self.rules.get(name).map(|rules| (number, rules.as_slice())));
            for (member, value) in abi.multiplexed(name) {
                let rules = self
                    .rules
                    .get(member)
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                behind.extend(companion(rules, *value).map(|rule| (number, rule)));
            }
        });
        named.extend(
            behind
                .iter()
                .map(|(number, rule)| (*number, std::slice::from_ref(rule))),
        );
        named.sort_by_key(|(number, _)| *number);

        let private = |number: u32| abi == Abi::Arm && number >= ARM_PRIVATE;
        let last = named
            .iter()
            .map(|(number, _)| *number)
            .rfind(|number| !private(*number));
        // What holds from a number on that is not named.
        let unnamed = |number| {
            let newer = last.is_some_and(|last| number > last);
            Verdict::Answer(if newer { self.unknown() } else { self.default })
        };
        let mut next = if abi == Abi::X32 { X32_BIT } else { 0 };
        for call in named.chunk_by(|a, b| a.0 == b.0) {
            let number = call[0].0;
            if number > next {
                verdicts.push((next, unnamed(next)));
            }
            let rules = call.iter().flat_map(|(_, rules)| *rules);
            verdicts.push((number, self.verdict(rules, abi)));
            next = number + 1;
        }
        verdicts.push((next, unnamed(next)));
    }

    fn verdict<'r>(&self, rules: impl Iterator<Item = &'r Rule> + Clone, abi: Abi) -> Verdict {
        if let Some(rule) = rules.clone().find(|rule| rule.conditions.is_empty()) {
            return Verdict::Answer(rule.answer);
        }
        let rules: Vec<_> = rules.cloned().collect();
        if rules.is_empty() {
            Verdict::Answer(self.default)
        } else {
            Verdict::Rules {
                rules,
                otherwise: self.default,
                is_32_bit: abi.is_32_bit(),
            }
        }
    }
}

/// The rule for a multiplexer that follows from the rules for a call behind it. Its arguments lie
/// in memory where a filter cannot look: a rule that refuses is applied whatever they are, one
/// that allows under a condition is not applied at all.
fn companion(rules: &[Rule], value: u64) -> Option<Rule> {
    let allow = code::action(Action::ScmpActAllow, 0);
    let rule = rules
        .iter()
        .find(|rule| rule.conditions.is_empty())
        .or_else(|| rules.iter().find(|rule| rule.answer != allow))?;
    let is_call = Condition {
        argument: 0,
        operator: Operator::ScmpCmpEq,
        value,
        value_two: 0,
    };
    Some(Rule {
        conditions: vec![is_call],
        answer: rule.answer,
    })
}

/// `SECCOMP_RET_*` of an action.
fn answer(action: Action, errno: Option<u32>) -> Result<u32, SeccompError> {
    let errno = errno.unwrap_or(EPERM);
    if errno > u32::from(u16::MAX) {
        return Err(SeccompError::Errno(errno));
    }
    Ok(code::action(action, errno))
}

fn conditions(
    name: &str,
    args: &[oci_spec::runtime::LinuxSeccompArg],
) -> Result<Vec<Condition>, SeccompError> {
    args.iter()
        .map(|arg| match u32::try_from(arg.index()) {
            Ok(argument @ 0..=5) => Ok(Condition {
                argument,
                operator: arg.op(),
                value: arg.value(),
                value_two: arg.value_two().unwrap_or(0),
            }),
            _ => Err(SeccompError::Argument {
                name: name.to_owned(),
                index: arg.index(),
            }),
        })
        .collect()
}

/// One rule, or one for each condition when two are about the same argument.
fn alternatives(conditions: Vec<Condition>, answer: u32) -> Vec<Rule> {
    let mut seen = [false; 6];
    let repeated = conditions
        .iter()
        .any(|c| std::mem::replace(&mut seen[c.argument as usize], true));
    if repeated {
        conditions
            .into_iter()
            .map(|c| Rule {
                conditions: vec![c],
                answer,
            })
            .collect()
    } else {
        vec![Rule { conditions, answer }]
    }
}
