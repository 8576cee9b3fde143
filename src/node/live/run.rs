//! Change sets that are taken in as one: where a replica is behind, one apply for many of
//! them. Only of what the archive has: a node that takes over publishes what its log
//! holds beyond the archive's head, which must not lie within a change set there.
//! Must not apply them.

use crate::peer::stream::{Ltx, ReceivedChange};
use crate::peer::wire::ChangeHead;
use crate::words::Pos;

/// So many together at most, and so many bytes.
const MOST: usize = 128;
const MOST_BYTES: usize = 4 << 20;

/// Change sets of one database, each of which continues the one before.
pub(super) struct Run {
    pub changes: Vec<ReceivedChange>,
    /// Whether the archive has them.
    pub archived: bool,
}

/// What is taken in before anything else is received: a run for each database.
#[derive(Default)]
pub(super) struct Batch {
    pub runs: Vec<Run>,
    count: usize,
    bytes: usize,
    /// The last one ends it.
    ended: bool,
}

impl Batch {
    /// Whether others may follow.
    pub fn is_open(&self) -> bool {
        !self.ended && self.count < MOST && self.bytes < MOST_BYTES
    }

    /// Takes another one, if it may be taken in with them; gives it back if not.
    /// `archived` is where its database stands in the archive.
    pub fn push(&mut self, next: ReceivedChange, archived: Option<Pos>) -> Option<ReceivedChange> {
        if !self.is_open() {
            return Some(next);
        }
        let archived = has(archived, &next.head);
        let size = size_of(&next).filter(|_| archived);
        match self.runs.iter_mut().find(|run| run.is_of(&next)) {
            Some(run) if size.is_some() && run.joins(&next) => run.changes.push(next),
            Some(_) => return Some(next),
            None => self.runs.push(Run { changes: vec![next], archived }),
        }
        self.count += 1;
        self.bytes += size.unwrap_or(0);
        self.ended = size.is_none();
        None
    }
}

impl Run {
    fn is_of(&self, next: &ReceivedChange) -> bool {
        self.changes.first().is_some_and(|first| first.head.db == next.head.db)
    }

    fn joins(&self, next: &ReceivedChange) -> bool {
        self.changes.last().is_some_and(|last| follows(&last.head, &next.head))
    }
}

fn has(archived: Option<Pos>, head: &ChangeHead) -> bool {
    archived.is_some_and(|archived| archived.txid >= head.post.txid)
}

/// Its bytes, if they are in memory.
fn size_of(change: &ReceivedChange) -> Option<usize> {
    match &change.ltx {
        Ltx::Memory(bytes) => Some(bytes.len()),
        Ltx::File(_) => None,
    }
}

/// Whether the pages of both together are what they make of the database. Where it
/// shrinks and grows again, pages in between are not what they were.
fn follows(last: &ChangeHead, next: &ChangeHead) -> bool {
    next.pre == last.post && next.page_size == last.page_size && next.commit >= last.commit && last.commit > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{Checksum, DbName, PageSize, Timestamp, Txid};

    fn pos(txid: u64) -> Pos {
        Pos { txid: Txid::new(txid), checksum: Checksum::from_stored(1 << 63 | txid).expect("bit 63 is set") }
    }

    fn change(name: &str, txid: u64, commit: u32) -> ReceivedChange {
        let head = ChangeHead {
            db: DbName::new(name).expect("a name"),
            pre: pos(txid - 1),
            post: pos(txid),
            page_size: PageSize::new(4096).expect("a page size"),
            commit,
            pages: 1,
            timestamp: Timestamp::from_millis(0),
        };
        ReceivedChange { head, ltx: Ltx::Memory(vec![0; 1000].into()) }
    }

    fn batch(first: ReceivedChange, archived: Option<Pos>) -> Batch {
        let mut batch = Batch::default();
        assert!(batch.push(first, archived).is_none(), "the first one always");
        batch
    }

    #[test]
    fn nothing_is_taken_in_together_across_the_archives_head() {
        let head = Some(pos(6));
        let mut both = batch(change("a", 5, 2), head);
        assert!(both.push(change("a", 6, 2), head).is_none());
        assert!(both.push(change("a", 7, 2), head).is_some());
        assert!(both.runs.len() == 1 && both.runs[0].archived && both.runs[0].changes.len() == 2);
        for archived in [None, Some(pos(4))] {
            let mut alone = batch(change("a", 5, 2), archived);
            assert!(!alone.runs[0].archived && !alone.is_open());
            assert!(alone.push(change("a", 6, 2), Some(pos(9))).is_some());
        }
        // One that the archive lacks may come last, as a run of its own.
        let mut last = batch(change("a", 5, 2), head);
        assert!(last.push(change("b", 1, 2), None).is_none() && !last.is_open());
        assert!(!last.runs[1].archived);
    }

    #[test]
    fn only_what_continues_and_does_not_shrink_is_taken_in_together() {
        let far = Some(pos(1000));
        for next in [change("a", 7, 2), change("a", 6, 1), change("a", 6, 0)] {
            assert!(batch(change("a", 5, 2), far).push(next, far).is_some());
        }
        assert!(batch(change("a", 5, 0), far).push(change("a", 6, 2), far).is_some());
        let mut many = batch(change("a", 1, 2), far);
        assert!(many.push(change("b", 1, 1), far).is_none());
        let more = (2..1000).take_while(|txid| many.push(change("a", *txid, 2), far).is_none()).count();
        assert_eq!((more + 2, many.runs.len()), (MOST, 2));
    }
}
