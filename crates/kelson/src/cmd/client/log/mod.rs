//! Container logs in the CRI's format: reading, following across rotation, printing.

mod file;
mod record;
mod watch;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

pub(crate) use file::LogFile;
pub(crate) use record::{Printer, Record};

use crate::ui::Io;

/// How often it is asked at least whether the log has ended.
const TICK: Duration = Duration::from_millis(200);
/// The first questions come sooner, for commands that end at once.
const FIRST_TICK: Duration = Duration::from_millis(10);

/// Prints what is appended to the log at `path`, until `ended` says that no more will come. What is
/// written before that is printed, too, across any number of rotations.
pub(crate) async fn follow(
    path: &Path,
    mut log: LogFile,
    printer: &mut Printer,
    io: &mut Io<'_>,
    mut ended: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let mut watch = watch::Watch::new(path);
    let mut tick = FIRST_TICK;
    let mut last_round = false;
    loop {
        let more = log.read_new(&mut |line| printer.print(line, io))?;
        io.out.flush()?;
        if more {
            tokio::task::yield_now().await;
            continue;
        }
        if last_round {
            return Ok(());
        }
        let asked = tokio::time::sleep(tick);
        tokio::select! {
            () = watch.changed() => {}
            () = asked => {
                tick = (tick * 2).min(TICK);
                last_round = ended().await?;
            }
        }
    }
}

#[cfg(test)]
mod tests;
