//! Group fsync: many commits that wait for durability share one fdatasync. Must not
//! hold the append lock while the disk works.

use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::Place;

#[derive(Debug, Default)]
struct State {
    synced: Place,
    running: bool,
}

/// How far the log is durable.
#[derive(Debug, Default)]
pub(super) struct Durable {
    state: Mutex<State>,
    done: Condvar,
}

impl Durable {
    /// Returns once everything before `upto` is durable. `current` gives the file in
    /// use and the place up to which it is written; older files were synced when
    /// they were left.
    pub fn wait(&self, upto: Place, current: impl Fn() -> (Arc<File>, Place)) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.synced >= upto {
                return Ok(());
            }
            if !state.running {
                break;
            }
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.running = true;
        drop(state);
        let (file, written) = current();
        let result = file.sync_data();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = false;
        if result.is_ok() {
            state.synced = state.synced.max(written);
        }
        drop(state);
        self.done.notify_all();
        result
    }

    /// Notes that everything before `upto` is durable.
    pub fn reached(&self, upto: Place) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.synced = state.synced.max(upto);
    }
}
