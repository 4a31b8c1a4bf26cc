//! The slow work of pods and containers, run beside their tasks. Each effect takes what it needs by value,
//! reports back once, and leaves nothing of what it could not finish.

pub(crate) mod create;
pub(crate) mod down;
pub(crate) mod kill;
pub(crate) mod remove;
mod security;
pub(crate) mod start;
pub(crate) mod up;
pub(crate) mod update;
mod volumes;
