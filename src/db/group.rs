//! Transactions of a WAL on their way into the log together: built one after the other,
//! each on what the one before leads to, appended in one write, and only then entered.
//! Under a steady load one look of the capture finds many. Must not touch files.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::DbError;
use super::change::Change;
use super::database::old_sum;
use super::log::{Batch, Kind};
use super::sums::Sums;
use super::wal::Captive;
use crate::sqlite::wal::{Cursor, Transaction};
use crate::words::{PageSize, PageSum, Pgno, Pos};

/// Memory that captures on one thread use one after the other.
#[derive(Default)]
pub(super) struct Scratch {
    pub frames: Vec<u8>,
    pub batch: Batch,
}

thread_local! {
    pub(super) static SCRATCH: Cell<Scratch> = Cell::default();
}

/// A group has so many bytes of records at most, and a transaction more.
const GROUP_BYTES: usize = 256 << 10;

/// Transactions that are built and not yet in the log: one append takes them all.
pub(super) struct Group {
    pub batch: Batch,
    pub built: Vec<Built>,
    /// The new checksums of their pages; `None`: no such page any more.
    pub sums: HashMap<u32, Option<PageSum>>,
    /// Where the last of them leads.
    pub end: Cursor,
    pub pos: Pos,
    pub pages: u32,
}

/// Transactions of a group with their change set; without one if they changed nothing.
pub(super) struct Built {
    pub merged: Merged,
    pub change: Option<Change>,
}

/// So many transactions that one look finds become change sets of their own. Where it
/// finds more, the writers are faster than a page for each commit can be kept, sent and
/// uploaded, and what they committed within these milliseconds becomes one change set,
/// each page once. Their TXIDs are counted all the same.
pub(super) const ALONE: u64 = 8;

/// Transactions that become one change set.
pub(super) struct Merged {
    /// The last one's; of each page the newest.
    pub transaction: Transaction,
    /// The end, size and pages of each.
    pub captives: Vec<Captive>,
}

impl Merged {
    pub fn new(transaction: Transaction) -> Merged {
        let captives = vec![Captive::of(&transaction)];
        Merged { transaction, captives }
    }

    /// Takes in the next transaction, which is given back where it has to stay alone: one
    /// that shortens the database takes pages away that an earlier one wrote.
    pub fn add(&mut self, next: Transaction, page_size: PageSize) -> Option<Transaction> {
        let full = self.transaction.pages.len() * page_size.len() >= GROUP_BYTES;
        if full || next.commit < self.transaction.commit {
            return Some(next);
        }
        self.captives.push(Captive::of(&next));
        let before = std::mem::replace(&mut self.transaction, next);
        let pages = &mut self.transaction.pages;
        let newer: HashSet<Pgno> = pages.iter().map(|(pgno, _)| *pgno).collect();
        pages.extend(before.pages.into_iter().filter(|(pgno, _)| !newer.contains(pgno)));
        pages.sort_unstable();
        self.transaction.broken |= before.broken;
        None
    }
}

impl Group {
    pub fn new(end: Cursor, pos: Pos, pages: u32, mut batch: Batch) -> Group {
        batch.clear();
        Group { batch, built: Vec::new(), sums: HashMap::new(), end, pos, pages }
    }

    pub fn is_full(&self) -> bool {
        self.batch.len() >= GROUP_BYTES
    }

    /// The checksum of a page before the next transaction.
    pub fn old_sum(
        &self,
        sums: &Sums,
        pgno: Pgno,
        path: impl Fn() -> PathBuf,
    ) -> Result<Option<PageSum>, DbError> {
        match self.sums.get(&pgno.get()) {
            Some(sum) => Ok(*sum),
            None => old_sum(sums, pgno, path),
        }
    }

    pub fn add(&mut self, merged: Merged, change: Option<Change>) {
        self.end = merged.transaction.end;
        let change = change.map(|mut change| {
            self.sums.extend(change.removed.clone().map(|pgno| (pgno, None)));
            self.sums.extend(change.pages.iter().map(|(pgno, sum)| (pgno.get(), Some(*sum))));
            (self.pos, self.pages) = (change.meta.post, change.meta.commit);
            change.encode(Kind::Change, &mut self.batch);
            change.forget_data();
            change
        });
        self.built.push(Built { merged, change });
    }
}

/// Pages by which the database, of `before` pages, grew without a frame: SQLite writes
/// no new page that is free again at the commit.
pub(super) fn holes(before: u32, transaction: &Transaction, size: PageSize) -> Vec<Pgno> {
    if transaction.commit <= before {
        return Vec::new();
    }
    let grown = transaction.commit - before;
    let present = transaction.pages.iter().filter(|(pgno, _)| pgno.get() > before).count();
    if present as u64 == u64::from(grown) {
        return Vec::new();
    }
    let there: HashSet<u32> = transaction.pages.iter().map(|(pgno, _)| pgno.get()).collect();
    (before + 1..=transaction.commit)
        .filter(|pgno| !there.contains(pgno))
        .filter_map(Pgno::new)
        .filter(|pgno| *pgno != size.lock_page())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(end: u32, commit: u32, pages: &[(u32, u64)]) -> Transaction {
        let page = |(pgno, offset): &(u32, u64)| (Pgno::new(*pgno).expect("not zero"), *offset);
        Transaction {
            commit,
            pages: pages.iter().map(page).collect(),
            end: Cursor { frames: end, sum: [end, end] },
            broken: false,
        }
    }

    fn size() -> PageSize {
        PageSize::new(4096).expect("a page size")
    }

    #[test]
    fn of_each_page_the_newest_counts_and_every_transaction_is_remembered() {
        let mut merged = Merged::new(transaction(2, 5, &[(1, 10), (4, 20)]));
        assert_eq!(merged.add(transaction(4, 6, &[(4, 30), (6, 40)]), size()), None);
        assert_eq!(merged.transaction, transaction(4, 6, &[(1, 10), (4, 30), (6, 40)]));
        assert_eq!(merged.captives.len(), 2);
    }

    #[test]
    fn a_transaction_that_shortens_the_database_stays_alone() {
        let mut merged = Merged::new(transaction(2, 5, &[(5, 10)]));
        let shorter = transaction(3, 4, &[(1, 20)]);
        assert_eq!(merged.add(shorter.clone(), size()), Some(shorter));
        assert_eq!(merged.transaction, transaction(2, 5, &[(5, 10)]));
    }

    #[test]
    fn a_change_set_does_not_grow_without_bound() {
        let pages: Vec<(u32, u64)> = (1..=64).map(|pgno| (pgno, u64::from(pgno))).collect();
        let mut merged = Merged::new(transaction(64, 64, &pages));
        assert!(merged.add(transaction(65, 64, &[(1, 1000)]), size()).is_some());
    }
}
