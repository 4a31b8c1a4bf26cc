//! A container runtime for Kubernetes nodes
fn main() {}
