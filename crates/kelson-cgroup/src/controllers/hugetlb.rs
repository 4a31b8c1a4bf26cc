//! `hugetlb`: huge pages.

use crate::dir::{Dir, pairs};
use crate::{Error, Hugepages, Resources, Result, Version};

pub(super) fn apply(dir: &Dir, version: Version, r: &Resources) -> Result<()> {
    let suffix = match version {
        Version::V1 => "limit_in_bytes",
        Version::V2 => "max",
    };
    for page in &r.hugepages {
        let size = checked(&page.page_size)?;
        let limit = page.limit.to_string();
        let known = dir.write_if_there(&format!("hugetlb.{size}.{suffix}"), &limit)?;
        // On v2 the controller may be missing as a whole. A limit of 0 holds where there is nothing.
        if !known && page.limit != 0 && version == Version::V1 {
            return Err(Error::limit(
                "hugepageLimits",
                size,
                "the machine has no such page size",
            ));
        }
        // Reservations are counted apart, on kernels that do.
        dir.write_if_there(&format!("hugetlb.{size}.rsvd.{suffix}"), &limit)?;
    }
    Ok(())
}

/// A page size becomes part of a file name.
fn checked(size: &str) -> Result<&str> {
    let digits = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| size.strip_suffix(unit));
    match digits {
        Some(digits)
            if (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) =>
        {
            Ok(size)
        }
        _ => Err(Error::limit(
            "hugepageLimits",
            size,
            "it is no page size such as 2MB",
        )),
    }
}

pub(super) fn stats(
    dir: &Dir,
    version: Version,
    page_sizes: &[String],
    buf: &mut Vec<u8>,
) -> Result<Vec<Hugepages>> {
    let mut all = Vec::with_capacity(page_sizes.len());
    for size in page_sizes {
        let usage = match version {
            Version::V1 => "usage_in_bytes",
            Version::V2 => "current",
        };
        let Some(usage) = dir.read_number(&format!("hugetlb.{size}.{usage}"), buf)? else {
            continue;
        };
        let (max_usage, failcnt) = match version {
            Version::V1 => (
                dir.read_number(&format!("hugetlb.{size}.max_usage_in_bytes"), buf)?,
                dir.read_number(&format!("hugetlb.{size}.failcnt"), buf)?
                    .unwrap_or(0),
            ),
            Version::V2 => {
                let events = dir.read(&format!("hugetlb.{size}.events"), buf)?;
                let max = pairs(events.unwrap_or_default()).find(|(key, _)| *key == "max");
                (None, max.map_or(0, |(_, value)| value))
            }
        };
        all.push(Hugepages {
            page_size: size.clone(),
            usage,
            max_usage,
            failcnt,
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HugepageLimit;
    use crate::controllers::testing::Files;

    #[test]
    fn limits() {
        let files = Files::new(&["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"]);
        let with = |size: &str| Resources {
            hugepages: vec![HugepageLimit {
                page_size: size.to_owned(),
                limit: 4096,
            }],
            ..Resources::default()
        };
        apply(&files.dir, Version::V2, &with("2MB")).unwrap();
        assert_eq!(files.get("hugetlb.2MB.max"), "4096");
        assert_eq!(files.get("hugetlb.2MB.rsvd.max"), "4096");
        for size in ["", "MB", "2", "../2MB", "2mb", "123456789MB"] {
            assert!(
                apply(&files.dir, Version::V2, &with(size)).is_err(),
                "{size}"
            );
        }
    }

    #[test]
    fn statistics() {
        let files = Files::new(&[]);
        files.set("hugetlb.2MB.current", "8\n");
        files.set("hugetlb.2MB.events", "max 5\n");
        let sizes = ["2MB".to_owned(), "1GB".to_owned()];
        let stats = stats(&files.dir, Version::V2, &sizes, &mut Vec::new()).unwrap();
        assert_eq!(stats.len(), 1);
        assert_eq!((stats[0].usage, stats[0].failcnt), (8, 5));
    }
}
