//! CRI over gRPC: one file per verb
