//! `pids`: how many processes and threads there may be.

use crate::dir::Dir;
use crate::{Pids, Resources, Result};

/// The file has the same name on v1 and v2.
pub(super) fn apply(dir: &Dir, r: &Resources) -> Result<()> {
    let Some(limit) = r.pids_limit else {
        return Ok(());
    };
    // With 0 not even the container's first process could be cloned into the cgroup.
    let limit = if limit < 0 {
        "max".to_owned()
    } else {
        limit.max(1).to_string()
    };
    dir.write_if_there("pids.max", &limit).map(|_| ())
}

pub(super) fn stats(dir: &Dir, buf: &mut Vec<u8>) -> Result<Pids> {
    Ok(Pids {
        current: dir.read_number("pids.current", buf)?.unwrap_or(0),
        limit: dir.read_number("pids.max", buf)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::Files;

    #[test]
    fn limits() {
        for (limit, expected) in [
            (None, ""),
            (Some(-1), "max"),
            (Some(0), "1"),
            (Some(7), "7"),
        ] {
            let files = Files::new(&["pids.max"]);
            apply(
                &files.dir,
                &Resources {
                    pids_limit: limit,
                    ..Resources::default()
                },
            )
            .unwrap();
            assert_eq!(files.get("pids.max"), expected);
        }
    }

    #[test]
    fn statistics() {
        let files = Files::new(&[]);
        files.set("pids.current", "3\n");
        files.set("pids.max", "max\n");
        let stats = stats(&files.dir, &mut Vec::new()).unwrap();
        assert_eq!(
            stats,
            Pids {
                current: 3,
                limit: None
            }
        );
    }
}
