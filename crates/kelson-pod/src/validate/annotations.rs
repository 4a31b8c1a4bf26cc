//! Annotations by which the field's runtimes are asked for what Kelson does not have. To ignore them would
//! leave a container with less protection or other limits than was asked for.

use std::collections::BTreeMap;

use super::Checker;

/// Asks for a handler that confines what is not trusted.
const UNTRUSTED: &str = "io.kubernetes.cri.untrusted-workload";
/// Ask for classes of block I/O and of caches: names, or starts of names that end with a slash.
const CLASSES: &[(&str, &str)] = &[
    ("io.kubernetes.cri.blockio-class", "classes of block I/O"),
    (
        "blockio.resources.beta.kubernetes.io/",
        "classes of block I/O",
    ),
    ("io.kubernetes.cri.rdt-class", "classes of Intel RDT"),
    ("rdt.resources.beta.kubernetes.io/", "classes of Intel RDT"),
];

pub(super) fn check(checker: &mut Checker, annotations: &BTreeMap<String, String>) {
    for (key, value) in annotations {
        let field = || format!("annotations[{key}]");
        if key == UNTRUSTED && value == "true" {
            checker.unsupported(field(), "there is no handler for untrusted workloads");
        }
        let class = CLASSES
            .iter()
            .find(|(name, _)| key == name || name.ends_with('/') && key.starts_with(name));
        if let Some((_, what)) = class {
            checker.unsupported(field(), *what);
        }
    }
}
