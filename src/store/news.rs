//! That something happened which others may wait for: a transaction, a put into the
//! archive, another role. A count that only grows; must not say what happened.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How often something happened.
#[derive(Debug, Default)]
pub struct News {
    count: Mutex<u64>,
    changed: Condvar,
}

impl News {
    /// How often so far. Look at it before looking at what may have changed.
    pub fn count(&self) -> u64 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened. Returns at once.
    pub fn tell(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// Waits until something happened since the count was `seen`, or `timeout` is over.
    pub fn wait(&self, seen: u64, timeout: Duration) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(count, timeout, |count| *count == seen));
    }
}
