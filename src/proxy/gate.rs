//! What a node waits for before it gives the lease away: writes that its application has
//! been asked for and has not answered. One that came too late would wait for a lock that
//! a replica never gives (WAL mode), and fail. Must not know HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

/// Lets writes through to this node's application, until somebody holds it.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    /// No write is under way any more.
    idle: Condvar,
    /// Marked when the last hold ends.
    opened: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    holds: usize,
    under_way: usize,
}

/// A write that is under way.
#[derive(Debug)]
pub(super) struct Pass(Arc<Gate>);

/// As long as it lives, requests that write wait; then they go to whoever is the primary.
#[derive(Debug)]
pub struct WritesHeld(Arc<Gate>);

impl Gate {
    pub(super) fn new() -> Arc<Gate> {
        Arc::new(Gate { state: Mutex::default(), idle: Condvar::new(), opened: watch::Sender::new(()) })
    }

    /// A write begins; `None`: it has to wait.
    pub(super) fn enter(self: &Arc<Gate>) -> Option<Pass> {
        let mut state = self.state.lock();
        if state.holds > 0 {
            return None;
        }
        state.under_way += 1;
        Some(Pass(Arc::clone(self)))
    }

    /// Whether a write is under way.
    pub(super) fn is_used(&self) -> bool {
        self.state.lock().under_way > 0
    }

    /// Marked as changed when writes may begin again.
    pub(super) fn opened(&self) -> watch::Receiver<()> {
        self.opened.subscribe()
    }

    /// Lets no write begin, and waits until those under way have been answered, but no
    /// longer than `patience`.
    pub(super) fn hold(self: &Arc<Gate>, patience: Duration) -> WritesHeld {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock();
        state.holds += 1;
        self.idle.wait_while_until(&mut state, |state| state.under_way > 0, deadline);
        if state.under_way > 0 {
            tracing::warn!(
                requests = state.under_way,
                "the application has not answered every request that writes: those may fail, for this node gives the lease away"
            );
        }
        WritesHeld(Arc::clone(self))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.under_way -= 1;
        if state.under_way == 0 {
            self.0.idle.notify_all();
        }
    }
}

impl Drop for WritesHeld {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.holds -= 1;
        if state.holds == 0 {
            self.0.opened.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_waits_for_the_writes_under_way_and_lets_none_begin() {
        let gate = Gate::new();
        let pass = gate.enter().expect("nobody holds it");
        let mut opened = gate.opened();
        std::thread::scope(|scope| {
            let held = scope.spawn(|| gate.hold(Duration::from_secs(60)));
            while let Some(_early) = gate.enter() {
                std::thread::yield_now();
            }
            assert!(!held.is_finished());
            drop(pass);
            let held = held.join().expect("no panic");
            assert!(gate.enter().is_none());
            assert!(!opened.has_changed().expect("it lives"));
            let second = gate.hold(Duration::ZERO);
            drop(held);
            assert!(gate.enter().is_none(), "one holds it yet");
            assert!(!gate.is_used());
            drop(second);
        });
        assert!(opened.has_changed().expect("it lives"));
        opened.mark_unchanged();
        let _pass = gate.enter().expect("it is open again");
        assert!(gate.is_used());
        drop(gate.hold(Duration::ZERO));
    }
}
