//! The end of waiting for the archive when the node stops: an application that commits
//! cannot end before its commit has an answer. Must not decide what the answer is.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::store::Commits;

/// Refuses commits that wait for the archive once its time is over; nothing if it is
/// dropped before.
pub(super) struct LastCall {
    _ends: Sender<()>,
}

impl LastCall {
    /// Commits may still wait for `patience`.
    pub fn start(commits: &Arc<Commits>, patience: Duration) -> LastCall {
        let (ends, end) = channel();
        let waiting = Arc::clone(commits);
        let wait = move || {
            if end.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                waiting.refuse_waits();
            }
        };
        let thread = std::thread::Builder::new().name("litefs-last-call".to_owned());
        if let Err(error) = thread.spawn(wait) {
            tracing::warn!(%error, "commits that wait for the archive get no time to");
            commits.refuse_waits();
        }
        LastCall { _ends: ends }
    }
}
