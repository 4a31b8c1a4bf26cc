//! Pressure stall information (v2).

use crate::dir::Dir;
use crate::{Pressure, Psi, PsiSet, Result};

/// The pressure of the three resources; `None` where the kernel does not record it.
pub(super) fn read(dir: &Dir, buf: &mut Vec<u8>) -> Result<Option<PsiSet>> {
    let mut one = |file: &str| -> Result<Option<Psi>> { Ok(dir.read(file, buf)?.map(parse)) };
    let (cpu, memory, io) = (
        one("cpu.pressure")?,
        one("memory.pressure")?,
        one("io.pressure")?,
    );
    if cpu.is_none() && memory.is_none() && io.is_none() {
        return Ok(None);
    }
    Ok(Some(PsiSet {
        cpu: cpu.unwrap_or_default(),
        memory: memory.unwrap_or_default(),
        io: io.unwrap_or_default(),
    }))
}

/// Lines are `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn parse(text: &str) -> Psi {
    let mut psi = Psi::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let pressure = match words.next() {
            Some("some") => &mut psi.some,
            Some("full") => &mut psi.full,
            _ => continue,
        };
        *pressure = Pressure::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let per_cent = || {
                value
                    .parse()
                    .ok()
                    .filter(|v: &f64| v.is_finite())
                    .unwrap_or(0.0)
            };
            match key {
                "avg10" => pressure.avg10 = per_cent(),
                "avg60" => pressure.avg60 = per_cent(),
                "avg300" => pressure.avg300 = per_cent(),
                "total" => pressure.total_us = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    psi
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines() {
        let psi = parse(
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\n\
             full avg10=0.00 avg60=nan avg300=inf total=x\n",
        );
        assert_eq!(
            psi.some,
            Pressure {
                avg10: 1.5,
                avg60: 0.25,
                avg300: 0.0,
                total_us: 12
            }
        );
        assert_eq!(psi.full, Pressure::default());
    }

    proptest::proptest! {
        #[test]
        fn any_text(text in "((some|full) )?[a-z0-9=. \n]{0,80}") {
            let _ = parse(&text);
        }
    }
}
