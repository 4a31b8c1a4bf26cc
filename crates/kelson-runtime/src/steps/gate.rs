//! Waiting to be started, for those who create a container first and start it later.

use rustix::net::SocketFlags;

use super::{Failure, NewProcess, OrFail};
use crate::progress::Message;

/// Waits for a connection at the gate, if there is one; what happens next is told there too.
pub(super) fn wait(process: &mut NewProcess<'_>) -> Result<(), Failure> {
    let Some(gate) = process.options.gate.take() else {
        return Ok(());
    };
    process.channel.tell(&Message::Waiting);
    let starter =
        rustix::io::retry_on_intr(|| rustix::net::accept_with(&gate, SocketFlags::CLOEXEC))
            .or_fail(|| "cannot wait for the start".into())?;
    process.channel.add(starter);
    Ok(())
}
