//! Short forms for people: ids, ages, sizes, durations.

use std::time::Duration;

/// How much of an id is shown; as unique in practice as the whole of it.
const SHORT: usize = 13;

/// The beginning of an id or digest, without `sha256:`.
pub(crate) fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..SHORT).unwrap_or(id)
}

/// How long ago `then` was: "3 minutes ago". Both in nanoseconds since 1970.
pub(crate) fn age(now: i64, then: i64) -> String {
    if then <= 0 {
        return String::new();
    }
    let seconds = now.saturating_sub(then).max(0) / 1_000_000_000;
    let (count, unit) = match seconds {
        0 => return "less than a second ago".into(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// Decimal units, as registries and disks count: "4.26 MB".
pub(crate) fn size(bytes: u64) -> String {
    scaled(bytes, 1000.0, ["B", "kB", "MB", "GB", "TB", "PB"])
}

/// Binary units, as memory is counted: "12.5 MiB".
pub(crate) fn memory(bytes: u64) -> String {
    scaled(bytes, 1024.0, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn scaled(bytes: u64, step: f64, units: [&str; 6]) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    // 999.5 and more would be shown with four digits.
    while value >= step.min(999.5) && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let unit = units[unit];
    match value {
        _ if unit == "B" => format!("{bytes} B"),
        ..10.0 => format!("{value:.2} {unit}"),
        10.0..100.0 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// "850 ms", "3.2 s", "2 min 5 s".
pub(crate) fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

/// A time in nanoseconds since 1970 as RFC 3339; empty for 0.
pub(crate) fn timestamp(nanoseconds: i64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(nanoseconds)) {
        Ok(time) if nanoseconds != 0 => time.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_lose_their_algorithm_and_their_tail() {
        assert_eq!(short_id("sha256:0123456789abcdef0123"), "0123456789abc");
        assert_eq!(short_id("0123"), "0123");
    }

    #[test]
    fn ages_name_the_largest_unit() {
        let now = 10_000_000 * 1_000_000_000;
        let ago = |seconds: i64| age(now, now - seconds * 1_000_000_000);
        assert_eq!(ago(0), "less than a second ago");
        assert_eq!(ago(1), "1 second ago");
        assert_eq!(ago(185), "3 minutes ago");
        assert_eq!(ago(7300), "2 hours ago");
        assert_eq!(ago(86_400), "1 day ago");
        assert_eq!(age(now, now + 5_000_000_000), "less than a second ago");
        assert_eq!(age(now, 0), "");
    }

    #[test]
    fn sizes_have_three_digits() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(999_999), "1.00 MB");
        assert_eq!(size(4_261_550), "4.26 MB");
        assert_eq!(memory(13_107_200), "12.5 MiB");
        assert_eq!(memory(1023 * 1024), "1.00 MiB");
        assert_eq!(size(u64::MAX), "18447 PB");
    }

    #[test]
    fn durations_and_times() {
        assert_eq!(duration(Duration::from_millis(850)), "850 ms");
        assert_eq!(duration(Duration::from_millis(3210)), "3.2 s");
        assert_eq!(duration(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(timestamp(0), "");
        assert_eq!(timestamp(1_000_000_001), "1970-01-01T00:00:01.000000001Z");
    }
}
