//! What nothing names: large change sets of writers that died before a segment named
//! them, found by a listing and deleted; and branches that lost and are past their
//! time. Must not touch what a segment or the manifest names, or what a writer that is
//! not fenced may still name.
//!
//! Why that is safe: the key says in which epoch the object was put. The seal of this
//! writer's epoch has stopped every earlier one, so what none of their segments names
//! never will be named; and a writer that is itself fenced, and does not know yet,
//! knows no epoch but those before its own.

use std::collections::BTreeSet;
use std::time::Duration;

use super::change::Place;
use super::error::ArchiveError;
use super::head::Head;
use super::keys;
use super::load::in_parallel;
use super::writer::Writer;
use crate::words::Timestamp;

/// No more are deleted at a time; the next term takes the rest.
const MOST: usize = 1000;

/// How often it is worth two listings, while there is something to do anyway.
const EVERY: Duration = Duration::from_secs(24 * 3600);

impl Writer {
    /// Whether it is time, when it was done last at `last`.
    pub(super) fn sweep_is_due(&self, last: Option<Timestamp>, now: Timestamp) -> bool {
        last.is_none_or(|last| last <= now.before(EVERY) || last > now)
    }

    /// Deletes what former writers left behind, and branches that lost long ago; returns
    /// how many objects.
    pub(super) fn sweep(&self, now: Timestamp) -> Result<u64, ArchiveError> {
        let expired = self.archive.expire_branches(now.before(self.archive.options.parked_retention))?;
        let store = &self.archive.store;
        let listed = store.list(keys::BIG, None)?;
        if listed.is_empty() {
            return Ok(expired);
        }
        let named = self.with_head(named);
        let is_left = |key: &String| {
            keys::parse_big(key).is_some_and(|epoch| epoch < self.epoch()) && !named.contains(key)
        };
        let left: Vec<String> = listed.into_iter().map(|info| info.key).filter(is_left).take(MOST).collect();
        let gone = in_parallel(self.archive.options.parallel, &left, |key| store.delete(key));
        gone.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(expired + left.len() as u64)
    }
}

/// The keys of the objects that the manifest or the log's tail names.
pub(super) fn named(head: &Head) -> BTreeSet<String> {
    let mut named: BTreeSet<String> =
        head.manifest().doomed.iter().map(|doomed| doomed.key.clone()).collect();
    for database in head.manifest().databases.values() {
        named.extend(database.objects.iter().map(|object| object.key.clone()));
    }
    for entry in head.tail().iter().flat_map(|tail| &tail.segment.entries) {
        if let Place::Object { key, .. } = &entry.place {
            named.insert(key.clone());
        }
    }
    named
}
