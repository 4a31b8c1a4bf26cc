//! `blkio` (v1) and `io` (v2): weights, rates, bytes and operations by device.

use crate::dir::Dir;
use crate::{Error, Io, IoDevice, IoThrottle, Resources, Result};

/// Whether a limit of this controller is asked for.
pub(super) fn wanted(r: &Resources) -> bool {
    r.io_weight.is_some()
        || !r.io_device_weights.is_empty()
        || !r.io_read_bps.is_empty()
        || !r.io_write_bps.is_empty()
        || !r.io_read_iops.is_empty()
        || !r.io_write_iops.is_empty()
}

pub(super) fn apply_v1(dir: &Dir, r: &Resources) -> Result<()> {
    if let Some(weight) = checked_weight(r.io_weight)? {
        let weight = weight.to_string();
        // The CFQ file of kernels before 5.0, the BFQ file of those after.
        if !dir.write_if_there("blkio.weight", &weight)? {
            dir.write_if_there("blkio.bfq.weight", &weight)?;
        }
    }
    for device in &r.io_device_weights {
        let line = device_weight(device)?;
        if !dir.write_if_there("blkio.weight_device", &line)? {
            dir.write_if_there("blkio.bfq.weight_device", &line)?;
        }
    }
    for (file, throttles) in [
        ("blkio.throttle.read_bps_device", &r.io_read_bps),
        ("blkio.throttle.write_bps_device", &r.io_write_bps),
        ("blkio.throttle.read_iops_device", &r.io_read_iops),
        ("blkio.throttle.write_iops_device", &r.io_write_iops),
    ] {
        for IoThrottle { major, minor, rate } in throttles {
            dir.write_if_there(file, &format!("{major}:{minor} {rate}"))?;
        }
    }
    Ok(())
}

pub(super) fn apply_v2(dir: &Dir, r: &Resources) -> Result<()> {
    if let Some(weight) = checked_weight(r.io_weight)?
        && !dir.write_if_there("io.bfq.weight", &weight.to_string())?
    {
        dir.write_if_there("io.weight", &format!("default {}", v2_weight(weight)))?;
    }
    for device in &r.io_device_weights {
        let line = device_weight(device)?;
        if !dir.write_if_there("io.bfq.weight", &line)? {
            let (major, minor) = (device.major, device.minor);
            let line = format!("{major}:{minor} {}", v2_weight(device.weight));
            dir.write_if_there("io.weight", &line)?;
        }
    }
    for (key, throttles) in [
        ("rbps", &r.io_read_bps),
        ("wbps", &r.io_write_bps),
        ("riops", &r.io_read_iops),
        ("wiops", &r.io_write_iops),
    ] {
        for IoThrottle { major, minor, rate } in throttles {
            let rate = if *rate == 0 {
                "max".to_owned()
            } else {
                rate.to_string()
            };
            dir.write_if_there("io.max", &format!("{major}:{minor} {key}={rate}"))?;
        }
    }
    Ok(())
}

/// 0 means "unset".
fn checked_weight(weight: Option<u16>) -> Result<Option<u16>> {
    match weight {
        None | Some(0) => Ok(None),
        Some(10..=1000) => Ok(weight),
        Some(weight) => Err(Error::limit(
            "blockIO.weight",
            weight,
            "it is not within 10 to 1000",
        )),
    }
}

fn device_weight(device: &crate::IoWeight) -> Result<String> {
    let weight = checked_weight(Some(device.weight))?.unwrap_or(0);
    Ok(format!("{}:{} {weight}", device.major, device.minor))
}

/// 10 to 1000 stretched to 1 to 10000.
fn v2_weight(weight: u16) -> u32 {
    1 + u32::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

/// A field of [`IoDevice`].
type Field = fn(&mut IoDevice) -> &mut u64;

pub(super) fn stats_v1(dir: &Dir, buf: &mut Vec<u8>) -> Result<Io> {
    let mut io = Io::default();
    let files: [(&str, Field, Field); 2] = [
        (
            "blkio.throttle.io_service_bytes_recursive",
            |d| &mut d.read_bytes,
            |d| &mut d.write_bytes,
        ),
        (
            "blkio.throttle.io_serviced_recursive",
            |d| &mut d.read_ops,
            |d| &mut d.write_ops,
        ),
    ];
    for (file, read, write) in files {
        // Lines are `8:0 Read 4096`, one for each kind of operation.
        for line in dir.read(file, buf)?.unwrap_or_default().lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(device), Some(kind), Some(value)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let field = match kind {
                "Read" => read,
                "Write" => write,
                _ => continue,
            };
            if let Some(entry) = entry(&mut io, device) {
                *field(entry) = value.parse().unwrap_or(0);
            }
        }
    }
    Ok(io)
}

pub(super) fn stats_v2(dir: &Dir, buf: &mut Vec<u8>) -> Result<Io> {
    let mut io = Io::default();
    // Lines are `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
    for line in dir.read("io.stat", buf)?.unwrap_or_default().lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(entry) = words.next().and_then(|device| entry(&mut io, device)) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let field = match key {
                "rbytes" => &mut entry.read_bytes,
                "wbytes" => &mut entry.write_bytes,
                "rios" => &mut entry.read_ops,
                "wios" => &mut entry.write_ops,
                _ => continue,
            };
            *field = value.parse().unwrap_or(0);
        }
    }
    Ok(io)
}

/// The entry for a device written as `8:0`.
fn entry<'a>(io: &'a mut Io, device: &str) -> Option<&'a mut IoDevice> {
    let (major, minor) = device.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let at = io
        .devices
        .iter()
        .position(|known| (known.major, known.minor) == (major, minor));
    let at = at.unwrap_or_else(|| {
        io.devices.push(IoDevice {
            major,
            minor,
            ..IoDevice::default()
        });
        io.devices.len() - 1
    });
    io.devices.get_mut(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::Files;

    #[test]
    fn limits() {
        let r = Resources {
            io_weight: Some(1000),
            io_read_bps: vec![IoThrottle {
                major: 8,
                minor: 16,
                rate: 5,
            }],
            ..Resources::default()
        };
        let files = Files::new(&["io.weight", "io.max"]);
        apply_v2(&files.dir, &r).unwrap();
        assert_eq!(files.get("io.weight"), "default 10000");
        assert_eq!(files.get("io.max"), "8:16 rbps=5");
        let files = Files::new(&["blkio.bfq.weight", "blkio.throttle.read_bps_device"]);
        apply_v1(&files.dir, &r).unwrap();
        assert_eq!(files.get("blkio.bfq.weight"), "1000");
        assert_eq!(files.get("blkio.throttle.read_bps_device"), "8:16 5");
        let r = Resources {
            io_weight: Some(9),
            ..Resources::default()
        };
        assert!(apply_v2(&files.dir, &r).is_err());
    }

    #[test]
    fn statistics() {
        let expected = IoDevice {
            major: 8,
            minor: 1,
            read_bytes: 1,
            write_bytes: 2,
            read_ops: 3,
            write_ops: 4,
        };
        let files = Files::new(&[]);
        files.set(
            "io.stat",
            "8:1 rbytes=1 wbytes=2 rios=3 wios=4 x=5\n8:2 \nbad\n",
        );
        let io = stats_v2(&files.dir, &mut Vec::new()).unwrap();
        assert_eq!(io.devices[0], expected);
        files.set(
            "blkio.throttle.io_service_bytes_recursive",
            "8:1 Read 1\n8:1 Write 2\n8:1 Total 3\nTotal 3\n",
        );
        files.set(
            "blkio.throttle.io_serviced_recursive",
            "8:1 Read 3\n8:1 Write 4\n",
        );
        let io = stats_v1(&files.dir, &mut Vec::new()).unwrap();
        assert_eq!(io.devices, [expected]);
    }
}
