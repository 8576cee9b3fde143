//! Upkeep in the background: the change log after each put, the archive when its
//! tail has grown. One thread that sleeps until it is poked: no timer.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

#[derive(Default)]
struct State {
    poked: bool,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Wakes the upkeep; cloned freely.
#[derive(Clone, Default)]
pub(super) struct Poke(Arc<Shared>);

impl Poke {
    /// There may be something to do.
    pub fn poke(&self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).poked = true;
        self.0.changed.notify_one();
    }
}

/// The thread; it ends when dropped, after what it is doing.
pub(super) struct Upkeep {
    poke: Poke,
    thread: Option<JoinHandle<()>>,
}

impl Upkeep {
    /// Runs `work` each time it is poked.
    pub fn start(poke: Poke, mut work: impl FnMut() + Send + 'static) -> std::io::Result<Upkeep> {
        let shared = Arc::clone(&poke.0);
        shared.state.lock().unwrap_or_else(PoisonError::into_inner).stop = false;
        let run = move || {
            loop {
                let state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
                let idle = |state: &mut State| !state.poked && !state.stop;
                let mut state =
                    shared.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
                if state.stop {
                    return;
                }
                state.poked = false;
                drop(state);
                work();
            }
        };
        let thread = std::thread::Builder::new().name("litefs-upkeep".to_owned()).spawn(run)?;
        Ok(Upkeep { poke, thread: Some(thread) })
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.poke.0.state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.poke.0.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
