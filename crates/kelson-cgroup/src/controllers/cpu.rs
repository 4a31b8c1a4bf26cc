//! `cpu` and `cpuacct`: shares, quota, time used.

use super::Detail;
use crate::dir::{Dir, pairs};
use crate::{Cpu, Resources, Result};

/// Whether a limit of this controller is asked for.
pub(super) fn wanted(r: &Resources) -> bool {
    r.cpu_shares.is_some()
        || r.cpu_quota.is_some()
        || r.cpu_period.is_some()
        || r.cpu_burst.is_some()
        || r.cpu_idle.is_some()
}

pub(super) fn apply_v1(dir: &Dir, r: &Resources) -> Result<()> {
    let mut writes = Vec::new();
    let mut push = |file, value: Option<String>| writes.extend(value.map(|value| (file, value)));
    push(
        "cpu.shares",
        set(r.cpu_shares).map(|shares| shares.to_string()),
    );
    push(
        "cpu.cfs_period_us",
        set(r.cpu_period).map(|period| period.to_string()),
    );
    let quota = r.cpu_quota.filter(|quota| *quota != 0);
    push(
        "cpu.cfs_quota_us",
        quota.map(|quota| quota.max(-1).to_string()),
    );
    push(
        "cpu.cfs_burst_us",
        r.cpu_burst.map(|burst| burst.to_string()),
    );
    push("cpu.idle", r.cpu_idle.map(|idle| idle.to_string()));
    dir.write_together(writes)
}

pub(super) fn apply_v2(dir: &Dir, r: &Resources) -> Result<()> {
    let mut writes = Vec::new();
    if let Some(shares) = set(r.cpu_shares) {
        writes.push(("cpu.weight", weight(shares).to_string()));
    }
    if let Some(max) = cpu_max(dir, r)? {
        writes.push(("cpu.max", max));
    }
    writes.extend(
        r.cpu_burst
            .map(|burst| ("cpu.max.burst", burst.to_string())),
    );
    writes.extend(r.cpu_idle.map(|idle| ("cpu.idle", idle.to_string())));
    dir.write_together(writes)
}

/// 0 means "unset" in the OCI specification's numbers.
fn set(value: Option<u64>) -> Option<u64> {
    value.filter(|value| *value != 0)
}

/// What to write to `cpu.max`: `quota period`, where an absent period stays as it is.
fn cpu_max(dir: &Dir, r: &Resources) -> Result<Option<String>> {
    let quota = match r.cpu_quota {
        None | Some(0) => None,
        Some(quota) if quota < 0 => Some("max".to_owned()),
        Some(quota) => Some(quota.to_string()),
    };
    Ok(match (quota, set(r.cpu_period)) {
        (quota, None) => quota,
        (Some(quota), Some(period)) => Some(format!("{quota} {period}")),
        (None, Some(period)) => {
            let mut buf = Vec::new();
            let now = dir.read("cpu.max", &mut buf)?.unwrap_or_default();
            let quota = now.split_ascii_whitespace().next().unwrap_or("max");
            Some(format!("{quota} {period}"))
        }
    })
}

/// v1 shares (2 to 262144, default 1024) as v2 weight (1 to 10000, default 100): the curve through
/// these three points that is quadratic in the logarithms, as runc has it since 1.3.2 and crun since
/// 1.23.
pub(crate) fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    if shares == 2 {
        return 1;
    }
    if shares == 262_144 {
        return 10_000;
    }
    // Below 2^18, exact in f64.
    #[expect(clippy::cast_precision_loss)]
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // Between 1 and 10000 by the clamp above.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight
}

pub(super) fn stats_cpuacct(
    dir: &Dir,
    detail: Detail,
    to: &mut Cpu,
    buf: &mut Vec<u8>,
) -> Result<()> {
    to.usage_ns = dir.read_number("cpuacct.usage", buf)?.unwrap_or(0);
    if detail == Detail::All {
        to.user_ns = dir.read_number("cpuacct.usage_user", buf)?.unwrap_or(0);
        to.system_ns = to.usage_ns.saturating_sub(to.user_ns);
    }
    Ok(())
}

pub(super) fn throttling_v1(dir: &Dir, to: &mut Cpu, buf: &mut Vec<u8>) -> Result<()> {
    for (key, value) in pairs(dir.read("cpu.stat", buf)?.unwrap_or_default()) {
        match key {
            "nr_periods" => to.periods = value,
            "nr_throttled" => to.throttled_periods = value,
            "throttled_time" => to.throttled_ns = value,
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn stats_v2(dir: &Dir, buf: &mut Vec<u8>) -> Result<Cpu> {
    let mut stats = Cpu::default();
    for (key, value) in pairs(dir.read("cpu.stat", buf)?.unwrap_or_default()) {
        match key {
            "usage_usec" => stats.usage_ns = value.saturating_mul(1000),
            "user_usec" => stats.user_ns = value.saturating_mul(1000),
            "system_usec" => stats.system_ns = value.saturating_mul(1000),
            "nr_periods" => stats.periods = value,
            "nr_throttled" => stats.throttled_periods = value,
            "throttled_usec" => stats.throttled_ns = value.saturating_mul(1000),
            _ => {}
        }
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::Files;

    #[test]
    fn weights() {
        // The ends, the default, and values published with the formula.
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (102, 17),
            (128, 21),
            (512, 59),
            (1024, 100),
            (4096, 303),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!((2..=262_144).all(|shares| (1..=10_000).contains(&weight(shares))));
        assert!((2..262_144).all(|shares| weight(shares) <= weight(shares + 1)));
    }

    #[test]
    fn limits_v2() {
        let files = Files::new(&["cpu.weight", "cpu.max", "cpu.idle"]);
        let r = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cpu_burst: Some(5),
            ..Resources::default()
        };
        apply_v2(&files.dir, &r).unwrap();
        assert_eq!(files.get("cpu.weight"), "100");
        assert_eq!(files.get("cpu.max"), "50000 100000");
        assert_eq!(files.get("cpu.idle"), "");
    }

    #[test]
    fn a_period_alone_keeps_the_quota() {
        let files = Files::new(&["cpu.max"]);
        files.set("cpu.max", "70000 100000\n");
        let r = Resources {
            cpu_period: Some(50_000),
            ..Resources::default()
        };
        assert_eq!(
            cpu_max(&files.dir, &r).unwrap().as_deref(),
            Some("70000 50000")
        );
        let r = Resources {
            cpu_quota: Some(-1),
            ..Resources::default()
        };
        assert_eq!(cpu_max(&files.dir, &r).unwrap().as_deref(), Some("max"));
        let r = Resources {
            cpu_quota: Some(0),
            cpu_period: Some(0),
            ..Resources::default()
        };
        assert_eq!(cpu_max(&files.dir, &r).unwrap(), None);
    }

    #[test]
    fn statistics() {
        let files = Files::new(&[]);
        files.set(
            "cpu.stat",
            "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnew x\n\n",
        );
        let stats = stats_v2(&files.dir, &mut Vec::new()).unwrap();
        assert_eq!(
            stats,
            Cpu {
                usage_ns: 5000,
                user_ns: 3000,
                system_ns: 2000,
                periods: 7,
                ..Cpu::default()
            }
        );
        files.set("cpuacct.usage", "100\n");
        files.set("cpuacct.usage_user", "60\n");
        files.set(
            "cpu.stat",
            "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n",
        );
        let mut stats = Cpu::default();
        stats_cpuacct(&files.dir, Detail::All, &mut stats, &mut Vec::new()).unwrap();
        throttling_v1(&files.dir, &mut stats, &mut Vec::new()).unwrap();
        assert_eq!(
            (stats.system_ns, stats.throttled_periods, stats.throttled_ns),
            (40, 2, 3)
        );
    }
}
