//! Limits of a pod's traffic, by annotations that Kubernetes knows. Plugins of the network that declare the
//! capability `bandwidth` set them.

use std::collections::BTreeMap;

use kelson_network::Bandwidth;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// The least and the largest rate, in bits per second, as Kubernetes takes them.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// What may pass at once: as much as the plugin can count.
const BURST: u64 = u32::MAX as u64;
/// Suffixes of a quantity.
const SUFFIXES: &[(&str, u64)] = &[
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("", 1),
];

/// The limits, if there are any; the annotations that make no sense otherwise.
pub(crate) fn of(
    annotations: &BTreeMap<String, String>,
) -> Result<Option<Bandwidth>, Vec<&'static str>> {
    let mut wrong = Vec::new();
    let mut rate = |key| match annotations.get(key).map(|text| parse(text)) {
        None => 0,
        Some(Some(rate)) => rate,
        Some(None) => {
            wrong.push(key);
            0
        }
    };
    let (ingress_rate, egress_rate) = (rate(INGRESS), rate(EGRESS));
    let burst = |rate| if rate == 0 { 0 } else { BURST };
    let limits = Bandwidth {
        ingress_rate,
        ingress_burst: burst(ingress_rate),
        egress_rate,
        egress_burst: burst(egress_rate),
    };
    if wrong.is_empty() {
        Ok((limits != Bandwidth::default()).then_some(limits))
    } else {
        Err(wrong)
    }
}

/// Bits per second of a quantity such as `10M` or `1.5Gi`.
fn parse(text: &str) -> Option<u64> {
    let (suffix, unit) = SUFFIXES.iter().find(|(suffix, _)| text.ends_with(suffix))?;
    let number = text.strip_suffix(suffix)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || (whole.is_empty() && part.is_empty()) {
        return None;
    }
    let unit = u128::from(*unit);
    let value = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text.parse::<u128>().ok()
        }
    };
    let scale = 10_u128.pow(u32::try_from(part.len()).ok()?);
    let rate = value(whole)? * unit + (value(part)? * unit).div_ceil(scale);
    u64::try_from(rate).ok().filter(|rate| RATES.contains(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, rate) in [
            ("10M", Some(10_000_000)),
            ("1.5Gi", Some(3 << 29)),
            ("1000", Some(1000)),
            (".5M", Some(500_000)),
            ("1P", Some(1_000_000_000_000_000)),
            ("999", None),
            ("2P", None),
            ("M", None),
            ("", None),
            ("-1M", None),
            ("1m", None),
            ("1 M", None),
            ("1.2.3M", None),
            ("9999999999999999M", None),
        ] {
            assert_eq!(parse(text), rate, "{text:?}");
        }
    }

    #[test]
    fn limits_by_annotations() {
        let mut annotations = BTreeMap::new();
        assert_eq!(of(&annotations), Ok(None));
        annotations.insert(INGRESS.to_owned(), "1M".to_owned());
        let limits = of(&annotations).unwrap().unwrap();
        assert_eq!(
            (limits.ingress_rate, limits.ingress_burst),
            (1_000_000, BURST)
        );
        assert_eq!((limits.egress_rate, limits.egress_burst), (0, 0));
        annotations.insert(EGRESS.to_owned(), "fast".to_owned());
        assert_eq!(of(&annotations), Err(vec![EGRESS]));
    }
}
