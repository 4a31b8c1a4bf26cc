//! The heart: one task owns one pod and its containers
