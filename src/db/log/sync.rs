//! Group fsync: many commits that wait for durability share one fdatasync. Must not
//! hold the append lock while the disk works.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::Place;

#[derive(Debug, Default)]
struct State {
    synced: Place,
    running: bool,
    /// The last fsync failed.
    failed: bool,
}

/// How far the log is durable.
#[derive(Debug, Default)]
pub(super) struct Durable {
    state: Mutex<State>,
    done: Condvar,
}

impl Durable {
    /// Returns once everything before `upto` is durable. `current` gives the file that may
    /// not be, with the place up to which it is written.
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
        let result = self.sync(&file, written);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = false;
        drop(state);
        self.done.notify_all();
        result
    }

    /// Makes `file`, which ends at `written`, durable. The kernel reports a failed
    /// write-back once and takes the pages for clean then (fsync(2), NOTES): after a
    /// failure what is not durable is written again.
    pub fn sync(&self, file: &File, written: Place) -> io::Result<()> {
        let (synced, failed) = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            (state.synced, state.failed)
        };
        let from = if synced.file == written.file { synced.offset } else { 0 };
        let again = if failed { rewrite(file, from, written.offset) } else { Ok(()) };
        let result = again.and_then(|()| file.sync_data());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failed = result.is_err();
        if result.is_ok() {
            state.synced = state.synced.max(written);
        }
        result
    }

    /// Notes that everything before `upto` is durable.
    pub fn reached(&self, upto: Place) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.synced = state.synced.max(upto);
    }
}

fn rewrite(file: &File, from: u64, to: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut at = from;
    while at < to {
        let len = (to - at).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..len], at)?;
        file.write_all_at(&buffer[..len], at)?;
        at += len as u64;
    }
    Ok(())
}
