//! The few system calls that no crate wraps safely
