//! The zygote, the shim and their protocol
