//! The queue of captured transactions on their way to the archive and to whoever
//! watches. Must not read the log.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::News;
use super::changes::Changes;
use crate::db::{CommitListener, Committed, Done, Place, ScannedChange, Verdict};
use crate::words::{DbName, Timestamp};

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Committed>,
    /// Taken, and not yet reported as published.
    taken: VecDeque<Committed>,
    /// Who waits for the archive to have which of them.
    waits: HashMap<Place, Done>,
    /// Those of the taken for which nobody waits any more: they were taken back here.
    refused: HashSet<Place>,
    /// Bytes of pages in all of them.
    bytes: u64,
    /// So many may be.
    limit: Option<u64>,
    full: bool,
    /// Nobody may wait: this node may not write, or stops.
    refusing: bool,
    captured: u64,
    publications: u64,
    woken: u64,
    /// When the last was captured.
    last: Option<Instant>,
}

/// Captured transactions that wait to be published, in commit order.
#[derive(Default)]
pub struct Commits {
    queue: Mutex<Queue>,
    /// Something waits that did not before; apart from the others so that a commit
    /// wakes nobody needlessly.
    arrived: Condvar,
    woken: Condvar,
    emptied: Condvar,
    /// It is full, or is not any more.
    filled: Condvar,
    /// As in the queue, for whoever must not wait for that.
    full: AtomicBool,
    watcher: OnceLock<Watcher>,
    pub(super) changes: Changes,
    news: News,
}

type Watcher = Box<dyn Fn(&Committed) + Send + Sync>;

/// How much the archive does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Change sets.
    pub count: u64,
    /// Bytes of their pages.
    pub bytes: u64,
    /// When the oldest was committed.
    pub oldest: Option<Timestamp>,
    /// So many bytes may be.
    pub limit: Option<u64>,
    /// Writes are refused.
    pub full: bool,
}

fn size_of(commit: &Committed) -> u64 {
    u64::from(commit.pages) * u64::from(commit.meta.page_size.get())
}

impl CommitListener for Commits {
    fn committed(&self, committed: Committed) {
        self.tell(&committed);
        let mut queue = self.lock();
        queue.captured += 1;
        queue.last = Some(Instant::now());
        self.push(queue, committed);
        self.news.tell();
    }

    fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    fn waits(&self, committed: Committed, done: Done) {
        let mut queue = self.lock();
        if queue.refusing {
            drop(queue);
            return done(Verdict::Refused);
        }
        queue.waits.insert(committed.place, done);
        self.push(queue, committed);
    }

    fn counts(&self, committed: Committed) {
        self.tell(&committed);
        let mut queue = self.lock();
        queue.captured += 1;
        queue.last = Some(Instant::now());
        drop(queue);
        self.news.tell();
    }

    fn applied(&self, committed: Committed) {
        self.push(self.lock(), committed);
        self.news.tell();
    }

    fn moved(&self) {
        self.changes.tell();
    }
}

impl Commits {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, mut queue: MutexGuard<'_, Queue>, committed: Committed) {
        let first = queue.waiting.is_empty();
        queue.bytes += size_of(&committed);
        queue.waiting.push_back(committed);
        self.judge(&mut queue);
        drop(queue);
        if first {
            self.arrived.notify_all();
        }
    }

    /// Counts anew after something went.
    fn weigh(&self, queue: &mut Queue) {
        queue.bytes = queue.taken.iter().chain(&queue.waiting).map(size_of).sum();
        self.judge(queue);
    }

    /// Once full, it is so until a tenth is free.
    fn judge(&self, queue: &mut Queue) {
        let limit = queue.limit.unwrap_or(u64::MAX);
        let full = queue.bytes >= if queue.full { limit - limit / 10 } else { limit };
        if full != queue.full {
            queue.full = full;
            self.full.store(full, Ordering::Release);
            self.filled.notify_all();
        }
    }

    /// Sets how many bytes of change sets may wait.
    pub fn set_limit(&self, limit: Option<u64>) {
        let mut queue = self.lock();
        queue.limit = limit;
        self.judge(&mut queue);
    }

    /// How much waits.
    pub fn backlog(&self) -> Backlog {
        let queue = self.lock();
        Backlog {
            count: (queue.waiting.len() + queue.taken.len()) as u64,
            bytes: queue.bytes,
            oldest: queue.taken.front().or(queue.waiting.front()).map(|commit| commit.meta.timestamp),
            limit: queue.limit,
            full: queue.full,
        }
    }

    /// Waits until it is full, or until it is not, for at most so long, or until `wake` is
    /// called or `stop` says so.
    pub fn wait_full(&self, full: bool, timeout: Option<Duration>, stop: impl Fn() -> bool) {
        let queue = self.lock();
        let woken = queue.woken;
        // What is set before `wake` is seen here, however late this begins to wait.
        let otherwise = |queue: &mut Queue| queue.full != full && queue.woken == woken && !stop();
        match timeout {
            Some(timeout) => drop(self.filled.wait_timeout_while(queue, timeout, otherwise)),
            None => drop(self.filled.wait_while(queue, otherwise)),
        }
    }

    fn tell(&self, committed: &Committed) {
        if let Some(watcher) = self.watcher.get() {
            watcher(committed);
        }
    }

    /// Commits may wait for the archive.
    pub fn accept_waits(&self) {
        self.lock().refusing = false;
    }

    /// Whoever waits for the archive, and whoever comes, is told that it is in vain. What
    /// nobody has taken to be published never will be.
    pub fn refuse_waits(&self) {
        let waits = {
            let mut queue = self.lock();
            queue.refusing = true;
            let waits = std::mem::take(&mut queue.waits);
            queue.waiting.retain(|commit| !waits.contains_key(&commit.place));
            let taken = queue.taken.iter().map(|commit| commit.place);
            let refused: Vec<Place> = taken.filter(|place| waits.contains_key(place)).collect();
            queue.refused.extend(refused);
            self.weigh(&mut queue);
            waits
        };
        self.emptied.notify_all();
        waits.into_values().for_each(|done| done(Verdict::Refused));
    }

    /// Sets who is told of every commit, once; must return at once.
    pub fn watch(&self, watcher: impl Fn(&Committed) + Send + Sync + 'static) {
        let _ = self.watcher.set(Box::new(watcher));
    }

    /// What the log held at start.
    pub(super) fn preload(&self, changes: &[ScannedChange]) {
        let mut queue = self.lock();
        queue.waiting.extend(changes.iter().map(|change| Committed {
            place: change.place,
            meta: change.meta.clone(),
            pages: change.pages.len() as u32,
        }));
        self.weigh(&mut queue);
    }

    /// Leaves out what is not of the database's past, or of no database.
    pub(super) fn forget_other_pasts(&self, log_from: impl Fn(&DbName) -> Option<Place>) {
        self.retain(|commit| log_from(&commit.meta.db).is_some_and(|from| commit.place >= from));
    }

    /// Leaves out a database.
    pub fn forget(&self, db: &DbName) {
        self.retain(|commit| commit.meta.db != *db);
    }

    /// Leaves out what `keep` does not want.
    pub fn retain(&self, keep: impl Fn(&Committed) -> bool) {
        let mut queue = self.lock();
        queue.waiting.retain(keep);
        self.weigh(&mut queue);
    }

    /// Waits until something is there, or `wake` is called, or `stop` says so.
    pub fn wait_waiting(&self, stop: impl Fn() -> bool) {
        let queue = self.lock();
        let woken = queue.woken;
        // What is set before `wake` is seen here, however late this begins to wait.
        let idle = |queue: &mut Queue| queue.waiting.is_empty() && queue.woken == woken && !stop();
        drop(self.arrived.wait_while(queue, idle));
    }

    /// Waits for `span`, or until `wake` is called.
    pub fn pause(&self, span: Duration) {
        self.pause_unless(span, || false);
    }

    /// Waits for `span`, or until `wake` is called, or `stop` says so.
    pub fn pause_unless(&self, span: Duration, stop: impl Fn() -> bool) {
        let queue = self.lock();
        let woken = queue.woken;
        let idle = |queue: &mut Queue| queue.woken == woken && !stop();
        drop(self.woken.wait_timeout_while(queue, span, idle));
    }

    /// Waits until nothing is left, neither waiting nor taken, or `timeout` is over;
    /// true if nothing is left.
    pub fn wait_empty(&self, timeout: Duration) -> bool {
        let busy = |queue: &mut Queue| !(queue.waiting.is_empty() && queue.taken.is_empty());
        let result = self.emptied.wait_timeout_while(self.lock(), timeout, busy);
        !result.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Ends the waits that are going on.
    pub fn wake(&self) {
        self.lock().woken += 1;
        self.arrived.notify_all();
        self.woken.notify_all();
        self.filled.notify_all();
    }

    /// Takes from the front while `fits` says so of the commit and how many were
    /// taken before it.
    pub fn take(&self, mut fits: impl FnMut(&Committed) -> bool) -> Vec<Committed> {
        let mut queue = self.lock();
        let mut taken = Vec::new();
        while queue.waiting.front().is_some_and(&mut fits) {
            let Some(commit) = queue.waiting.pop_front() else { break };
            queue.taken.push_back(commit.clone());
            taken.push(commit);
        }
        taken
    }

    /// What was taken is published.
    pub fn published(&self) {
        let done: Vec<Done> = {
            let mut queue = self.lock();
            let taken = std::mem::take(&mut queue.taken);
            queue.refused.clear();
            queue.publications += 1;
            self.weigh(&mut queue);
            taken.iter().filter_map(|commit| queue.waits.remove(&commit.place)).collect()
        };
        self.emptied.notify_all();
        self.news.tell();
        done.into_iter().for_each(|done| done(Verdict::Archived));
    }

    /// What was taken was not published: it waits again.
    pub fn give_back(&self) {
        let mut queue = self.lock();
        let (taken, refused) = (std::mem::take(&mut queue.taken), std::mem::take(&mut queue.refused));
        for commit in taken.into_iter().rev().filter(|commit| !refused.contains(&commit.place)) {
            queue.waiting.push_front(commit);
        }
        self.weigh(&mut queue);
    }

    /// When the last transaction was captured, if any was since the start.
    pub fn last(&self) -> Option<Instant> {
        self.lock().last
    }

    /// How many are not published.
    pub fn unpublished(&self) -> usize {
        let queue = self.lock();
        queue.waiting.len() + queue.taken.len()
    }

    /// How many of each database are not published.
    pub fn unpublished_by_database(&self) -> HashMap<DbName, u64> {
        let queue = self.lock();
        let mut counts = HashMap::new();
        for commit in queue.taken.iter().chain(&queue.waiting) {
            *counts.entry(commit.meta.db.clone()).or_default() += 1;
        }
        counts
    }

    /// Where the log has the oldest that is not published.
    pub fn oldest(&self) -> Option<Committed> {
        let queue = self.lock();
        queue.taken.front().or(queue.waiting.front()).cloned()
    }

    /// The oldest of one database that is not published.
    pub fn oldest_of(&self, db: &DbName) -> Option<Committed> {
        let queue = self.lock();
        queue.taken.iter().chain(&queue.waiting).find(|commit| commit.meta.db == *db).cloned()
    }

    /// What happens here, for those who wait for it.
    pub fn news(&self) -> &News {
        &self.news
    }

    /// How often something was published since the start.
    pub fn publications(&self) -> u64 {
        self.lock().publications
    }

    /// How many were captured since the start.
    pub fn captured(&self) -> u64 {
        self.lock().captured
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_the_wait_began_ends_it() {
        let commits = Commits::default();
        commits.wake();
        commits.wait_waiting(|| true);
        commits.wait_full(true, None, || true);
        commits.pause_unless(Duration::from_secs(3600), || true);
    }
}
