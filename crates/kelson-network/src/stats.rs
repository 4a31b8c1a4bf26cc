//! Interface counters of a pod, read from `/proc/<pid>/net/dev` without entering its namespace.

use std::path::Path;

use crate::error::StatsError;

/// Counters of one interface since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// Interface name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Packets dropped on receipt.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets dropped on sending.
    pub tx_dropped: u64,
}

/// The counters of every interface, `lo` included, in the network namespace of process `pid`.
pub fn interface_stats(proc_root: &Path, pid: u32) -> Result<Vec<InterfaceStats>, StatsError> {
    let path = proc_root.join(pid.to_string()).join("net/dev");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().skip(2).filter_map(parse_line).collect()),
        Err(source) => Err(StatsError { path, source }),
    }
}

fn parse_line(line: &str) -> Option<InterfaceStats> {
    let (name, numbers) = line.rsplit_once(':')?;
    let mut columns = [0u64; 16];
    let mut words = numbers.split_ascii_whitespace();
    for column in &mut columns {
        *column = words.next()?.parse().ok()?;
    }
    Some(InterfaceStats {
        name: name.trim().to_owned(),
        rx_bytes: columns[0],
        rx_packets: columns[1],
        rx_errors: columns[2],
        rx_dropped: columns[3],
        tx_bytes: columns[8],
        tx_packets: columns[9],
        tx_errors: columns[10],
        tx_dropped: columns[11],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_kernels_table() {
        let line = "  eth0: 1234567      12    1    2    0     0          0         0   \
                    7654321       34    3    4    0     0       0          0";
        let stats = parse_line(line).unwrap();
        assert_eq!(stats.name, "eth0");
        assert_eq!((stats.rx_bytes, stats.rx_dropped), (1_234_567, 2));
        assert_eq!(
            (stats.tx_bytes, stats.tx_errors, stats.tx_dropped),
            (7_654_321, 3, 4)
        );
        assert!(parse_line("garbage").is_none());
        assert!(parse_line("eth0: 1 2 3").is_none());
    }

    #[test]
    fn reads_a_living_process_and_names_the_file_of_a_dead_one() {
        let own = interface_stats(Path::new("/proc"), std::process::id()).unwrap();
        assert!(own.iter().any(|i| i.name == "lo"));
        let err = interface_stats(Path::new("/nonexistent"), 1).unwrap_err();
        assert!(err.to_string().contains("/nonexistent/1/net/dev"));
    }
}
