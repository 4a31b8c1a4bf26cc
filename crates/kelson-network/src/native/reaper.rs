//! Deletes interfaces, as many at once as there are waiting.
//!
//! The kernel waits some 20 ms for its readers whenever interfaces go away, once per request. So
//! whoever comes while a request is under way waits, and one of them deletes the interfaces of
//! all who waited, as a group.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::netlink::{Socket, route};

/// The interface group ("KELS") that is deleted as a whole; nothing stays in it.
const GROUP: u32 = 0x4b45_4c53;

/// The interfaces that are about to be deleted.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    waiting: Mutex<Vec<String>>,
    /// Held while a request is under way.
    at_work: Mutex<()>,
    failed: Mutex<HashMap<String, io::Error>>,
}

impl Reaper {
    /// Deletes an interface of the host; fine when there is none.
    pub(crate) fn delete(&self, name: &str) -> Result<(), Error> {
        lock(&self.waiting).push(name.to_owned());
        {
            let _at_work = lock(&self.at_work);
            let names = std::mem::take(&mut *lock(&self.waiting));
            let failures = delete_all(&names);
            lock(&self.failed).extend(failures);
        }
        let failure = lock(&self.failed).remove(name);
        let step = || format!("delete interface {name}");
        failure.map_or(Ok(()), |source| Err(Error::kernel(step(), source)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deletes these interfaces and returns those that could not be.
fn delete_all(names: &[String]) -> Vec<(String, io::Error)> {
    let socket = match Socket::route() {
        Ok(socket) => socket,
        Err(source) => {
            let code = source.raw_os_error().unwrap_or_default();
            let failed = |name: &String| (name.clone(), io::Error::from_raw_os_error(code));
            return names.iter().map(failed).collect();
        }
    };
    if names.len() > 1 && route::delete_group(&socket, names, GROUP).is_ok() {
        return Vec::new();
    }
    let each = names.iter().filter_map(|name| {
        let failure = route::delete_link(&socket, name).err()?;
        Some((name.clone(), failure))
    });
    each.collect()
}
