//! `memory`: limits of memory and swap, and what is used.

use super::Detail;
use crate::dir::{Dir, pairs};
use crate::{Error, Memory, Resources, Result};

/// v1 shows "no limit" as the largest number of whole pages; with any page size it is above this.
const V1_NO_LIMIT: u64 = 0x7fff_ffff_ffff_0000;

/// Whether a limit of this controller is asked for.
pub(super) fn wanted(r: &Resources) -> bool {
    r.memory_limit.is_some()
        || r.memory_swap.is_some()
        || r.memory_reservation.is_some()
        || r.memory_swappiness.is_some()
        || r.oom_kill_disable.is_some()
}

/// Memory and memory with swap as they are to be: 0 is "unset", below 0 is no limit, and swap that
/// is not given is none.
pub(crate) fn limits(r: &Resources) -> Result<(Option<i64>, Option<i64>)> {
    let set = |value: Option<i64>| value.filter(|value| *value != 0).map(|value| value.max(-1));
    let memory = set(r.memory_limit);
    let swap = set(r.memory_swap).or(memory);
    if let (Some(memory), Some(swap)) = (memory, swap)
        && swap > 0
        && (memory < 0 || memory > swap)
    {
        return Err(Error::limit(
            "memory.swap",
            swap,
            "it is below memory.limit",
        ));
    }
    Ok((memory, swap))
}

pub(super) fn apply_v1(dir: &Dir, r: &Resources) -> Result<()> {
    let (memory, swap) = limits(r)?;
    let mut writes = Vec::new();
    // Memory with swap may not be below memory at any moment: the one that does not fit now is
    // written second. Where swap is not accounted there is no such file.
    writes.extend(memory.map(|value| ("memory.limit_in_bytes", value.to_string())));
    writes.extend(swap.map(|value| ("memory.memsw.limit_in_bytes", value.to_string())));
    dir.write_together(writes)?;
    if let Some(value) = r.memory_reservation.filter(|value| *value != 0) {
        dir.write_if_there("memory.soft_limit_in_bytes", &value.max(-1).to_string())?;
    }
    if let Some(value) = r.memory_swappiness {
        if value > 100 {
            return Err(Error::limit("memory.swappiness", value, "it is above 100"));
        }
        dir.write_if_there("memory.swappiness", &value.to_string())?;
    }
    if let Some(disable) = r.oom_kill_disable {
        dir.write_if_there("memory.oom_control", if disable { "1" } else { "0" })?;
    }
    Ok(())
}

/// v2 has no swappiness and no OOM killer to disable in a cgroup: both are left out, as other
/// runtimes do.
pub(super) fn apply_v2(dir: &Dir, r: &Resources) -> Result<()> {
    let (memory, swap) = limits(r)?;
    if let Some(value) = memory {
        dir.write_if_there("memory.max", &number(value))?;
    }
    if let Some(with_memory) = swap {
        let own = swap_alone(dir, memory, with_memory)?;
        dir.write_if_there("memory.swap.max", &number(own))?;
    }
    if let Some(value) = r.memory_reservation.filter(|value| *value != 0) {
        dir.write_if_there("memory.low", &number(value))?;
    }
    Ok(())
}

fn number(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// v2 limits swap alone, not memory and swap together.
fn swap_alone(dir: &Dir, memory: Option<i64>, with_memory: i64) -> Result<i64> {
    if with_memory < 0 {
        return Ok(-1);
    }
    let memory = match memory {
        Some(memory) => u64::try_from(memory).ok(),
        None => dir.read_number("memory.max", &mut Vec::new())?,
    };
    let refuse = |reason| Err(Error::limit("memory.swap", with_memory, reason));
    match memory.and_then(|memory| i64::try_from(memory).ok()) {
        None => refuse("memory has no limit to which it could be added"),
        Some(memory) if memory > with_memory => refuse("it is below memory.limit"),
        Some(memory) => Ok(with_memory - memory),
    }
}

pub(super) fn stats_v1(dir: &Dir, detail: Detail, buf: &mut Vec<u8>) -> Result<Memory> {
    let mut stats = Memory::default();
    for (key, value) in pairs(dir.read("memory.stat", buf)?.unwrap_or_default()) {
        match key {
            "total_rss" => stats.rss = value,
            "total_cache" => stats.cache = value,
            "total_pgfault" => stats.page_faults = value,
            "total_pgmajfault" => stats.major_page_faults = value,
            "total_swap" => stats.swap = value,
            "total_mapped_file" => stats.mapped_file = value,
            "total_active_anon" => stats.active_anon = value,
            "total_inactive_anon" => stats.inactive_anon = value,
            "total_active_file" => stats.active_file = value,
            "total_inactive_file" => stats.inactive_file = value,
            _ => {}
        }
    }
    let mut number = |file: &str| dir.read_number(file, buf);
    stats.usage = number("memory.usage_in_bytes")?.unwrap_or(0);
    stats.working_set = stats.usage.saturating_sub(stats.inactive_file);
    let limited = |value: Option<u64>| value.filter(|value| *value < V1_NO_LIMIT);
    stats.limit = limited(number("memory.limit_in_bytes")?);
    // With swap there is no smaller limit than of memory.
    if let Some(memory) = stats.limit {
        let with_swap = limited(number("memory.memsw.limit_in_bytes")?);
        stats.swap_limit = with_swap.map(|with_swap| with_swap.saturating_sub(memory));
    }
    if detail == Detail::All {
        stats.max_usage = number("memory.max_usage_in_bytes")?;
        stats.kernel = number("memory.kmem.usage_in_bytes")?.unwrap_or(0);
        stats.failcnt = number("memory.failcnt")?.unwrap_or(0);
        if stats.swap_limit.is_some() {
            // Where it is no larger than that of memory, this one is hit first.
            stats.failcnt += number("memory.memsw.failcnt")?.unwrap_or(0);
        }
    }
    Ok(stats)
}

pub(super) fn stats_v2(dir: &Dir, detail: Detail, buf: &mut Vec<u8>) -> Result<Memory> {
    let mut stats = Memory::default();
    for (key, value) in pairs(dir.read("memory.stat", buf)?.unwrap_or_default()) {
        match key {
            "anon" => stats.rss = value,
            "file" => stats.cache = value,
            "kernel" => stats.kernel = value,
            "pgfault" => stats.page_faults = value,
            "pgmajfault" => stats.major_page_faults = value,
            "file_mapped" => stats.mapped_file = value,
            "active_anon" => stats.active_anon = value,
            "inactive_anon" => stats.inactive_anon = value,
            "active_file" => stats.active_file = value,
            "inactive_file" => stats.inactive_file = value,
            _ => {}
        }
    }
    let mut number = |file: &str| dir.read_number(file, buf);
    stats.usage = number("memory.current")?.unwrap_or(0);
    stats.working_set = stats.usage.saturating_sub(stats.inactive_file);
    stats.limit = number("memory.max")?;
    stats.swap = number("memory.swap.current")?.unwrap_or(0);
    stats.swap_limit = number("memory.swap.max")?;
    if detail == Detail::All {
        stats.max_usage = number("memory.peak")?;
        let events = dir.read("memory.events", buf)?.unwrap_or_default();
        stats.failcnt = pairs(events)
            .find(|(key, _)| *key == "max")
            .map_or(0, |(_, n)| n);
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::Files;

    fn with(limit: Option<i64>, swap: Option<i64>) -> Resources {
        Resources {
            memory_limit: limit,
            memory_swap: swap,
            ..Resources::default()
        }
    }

    fn v2(limit: Option<i64>, swap: Option<i64>) -> Result<(String, String)> {
        let files = Files::new(&["memory.max", "memory.swap.max"]);
        apply_v2(&files.dir, &with(limit, swap))?;
        Ok((files.get("memory.max"), files.get("memory.swap.max")))
    }

    #[test]
    fn swap_on_v2() {
        let ok = |limit, swap| v2(limit, swap).unwrap();
        let pair = |max: &str, swap: &str| (max.to_owned(), swap.to_owned());
        assert_eq!(ok(Some(100), None), pair("100", "0"));
        assert_eq!(ok(Some(100), Some(0)), pair("100", "0"));
        assert_eq!(ok(Some(100), Some(150)), pair("100", "50"));
        assert_eq!(ok(Some(100), Some(-1)), pair("100", "max"));
        assert_eq!(ok(Some(-1), None), pair("max", "max"));
        assert_eq!(ok(None, None), pair("", ""));
        assert!(v2(Some(100), Some(99)).is_err());
        assert!(v2(Some(-1), Some(99)).is_err());
    }

    #[test]
    fn swap_alone_is_added_to_the_limit_that_is_set() {
        let files = Files::new(&["memory.max", "memory.swap.max"]);
        files.set("memory.max", "4096\n");
        apply_v2(&files.dir, &with(None, Some(5000))).unwrap();
        assert_eq!(files.get("memory.swap.max"), "904");
        files.set("memory.max", "max\n");
        let error = apply_v2(&files.dir, &with(None, Some(5000))).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }));
    }

    #[test]
    fn statistics() {
        let files = Files::new(&[]);
        files.set(
            "memory.stat",
            "anon 10\nfile 20\ninactive_file 30\npgfault 4\n",
        );
        files.set("memory.current", "25\n");
        files.set("memory.max", "max\n");
        files.set("memory.events", "low 0\nmax 3\noom_kill 1\n");
        let stats = stats_v2(&files.dir, Detail::All, &mut Vec::new()).unwrap();
        assert_eq!((stats.usage, stats.working_set, stats.limit), (25, 0, None));
        assert_eq!(
            (stats.rss, stats.cache, stats.page_faults, stats.failcnt),
            (10, 20, 4, 3)
        );

        files.set(
            "memory.stat",
            "rss 1\ntotal_rss 11\ntotal_inactive_file 5\n",
        );
        files.set("memory.usage_in_bytes", "25\n");
        files.set("memory.limit_in_bytes", "100\n");
        files.set("memory.memsw.limit_in_bytes", "130\n");
        files.set("memory.failcnt", "2\n");
        files.set("memory.memsw.failcnt", "3\n");
        let stats = stats_v1(&files.dir, Detail::All, &mut Vec::new()).unwrap();
        assert_eq!((stats.rss, stats.working_set, stats.failcnt), (11, 20, 5));
        assert_eq!((stats.limit, stats.swap_limit), (Some(100), Some(30)));
        files.set("memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(
            stats_v1(&files.dir, Detail::All, &mut Vec::new())
                .unwrap()
                .limit,
            None
        );
        files.set("memory.usage_in_bytes", "many\n");
        let error = stats_v1(&files.dir, Detail::All, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }));
    }

    proptest::proptest! {
        #[test]
        fn any_file_is_read_without_panic(text in "[a-z_]{0,8} ?[0-9]{0,25}[ -~\n]{0,40}") {
            let files = Files::new(&[]);
            for file in ["memory.stat", "memory.events", "memory.current"] {
                files.set(file, &text);
            }
            let _ = stats_v2(&files.dir, Detail::All, &mut Vec::new());
            let _ = stats_v1(&files.dir, Detail::All, &mut Vec::new());
        }
    }
}
