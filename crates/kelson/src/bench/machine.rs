//! On what it was measured.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// Facts about the machine; what cannot be read is empty or 0.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) processors: usize,
    pub(super) memory_bytes: u64,
    pub(super) kernel: String,
    pub(super) cgroup_version: u8,
    pub(super) time: String,
    /// Processes that wanted to run in the minute before, on average: noise, if it is not near 0.
    pub(super) load: f64,
    pub(super) kelson_version: &'static str,
    /// Where the logs were written.
    pub(super) directory: String,
}

impl Machine {
    pub(super) fn here(directory: &Path) -> Self {
        let uname = rustix::system::uname();
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processor = field(&text("/proc/cpuinfo"), "model name").to_owned();
        let memory = text("/proc/meminfo");
        let memory = field(&memory, "MemTotal")
            .trim_end_matches("kB")
            .trim()
            .parse::<u64>();
        let load = text("/proc/loadavg");
        let load = load.split(' ').next().and_then(|load| load.parse().ok());
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        Self {
            processor,
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory.unwrap_or_default() * 1024,
            kernel: uname.release().to_string_lossy().into_owned(),
            cgroup_version: if unified { 2 } else { 1 },
            load: load.unwrap_or_default(),
            time: jiff::Timestamp::now().to_string(),
            kelson_version: env!("CARGO_PKG_VERSION"),
            directory: directory.display().to_string(),
        }
    }
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .find(|(key, _)| key.trim() == name)
        .map_or("", |(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_this_machine_are_found() {
        assert_eq!(field("a\t: b c \nd: e", "a"), "b c");
        assert_eq!(field("a: b", "x"), "");
        let machine = Machine::here(Path::new("/tmp"));
        assert!(machine.memory_bytes > 1 << 20 && machine.processors > 0);
        assert!(!machine.kernel.is_empty());
    }
}
