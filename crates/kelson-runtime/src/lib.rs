//! An OCI runtime as a library: runtime spec in, process out

pub mod seccomp;
