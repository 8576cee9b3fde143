//! Building a change set: which pages changed, their new contents and checksums, and
//! the position after. The mechanism that both captures (rollback, WAL) share. Must
//! not know where page contents come from.

use super::log::{Batch, ChangeMeta, Kind, SpillWriter, WalEnd};
use super::sums::Sums;
use super::{DbError, Shared};
use crate::words::{Checksum, DbName, PageSize, PageSum, Pgno, Pos, Timestamp, Txid};

/// Page contents beyond this many bytes go into a file of their own.
const SPILL_AT: usize = 16 << 20;

/// A change set under construction.
pub(super) struct Builder<'a> {
    shared: &'a Shared,
    checksum: Checksum,
    page_size: PageSize,
    pages: Vec<(Pgno, PageSum)>,
    data: Vec<u8>,
    spill: Option<SpillWriter>,
}

/// A finished change set, not yet in the log.
pub(super) struct Change {
    pub meta: ChangeMeta,
    pub pages: Vec<(Pgno, PageSum)>,
    /// Pages that the database no longer has.
    pub removed: std::ops::RangeInclusive<u32>,
    data: Vec<u8>,
    spill: Option<(u64, u64)>,
}

/// What a change set says besides its pages.
pub(super) struct Facts {
    pub db: DbName,
    pub pre: Pos,
    pub commit: u32,
    pub timestamp: Timestamp,
    pub wal: Option<WalEnd>,
    pub journal: u32,
}

impl<'a> Builder<'a> {
    /// Begins at the database's checksum before; page contents have `page_size`.
    pub fn new(shared: &'a Shared, before: Checksum, page_size: PageSize) -> Builder<'a> {
        Builder { shared, checksum: before, page_size, pages: Vec::new(), data: Vec::new(), spill: None }
    }

    /// Adds a page with its new content, pages in ascending order. `old` is its
    /// checksum before. Left out if nothing changed.
    pub fn page(&mut self, pgno: Pgno, old: Option<PageSum>, data: &[u8]) -> Result<(), DbError> {
        if pgno == self.page_size.lock_page() {
            return Ok(());
        }
        let sum = PageSum::of(pgno, data);
        if old == Some(sum) {
            return Ok(());
        }
        self.checksum = self.checksum.replace(old, Some(sum));
        self.pages.push((pgno, sum));
        if let Some(spill) = &mut self.spill {
            return Ok(spill.page(data)?);
        }
        self.data.extend_from_slice(data);
        if self.data.len() >= SPILL_AT {
            let mut spill = self.shared.log.spill()?;
            spill.page(&self.data)?;
            self.data = Vec::new();
            self.spill = Some(spill);
        }
        Ok(())
    }

    /// Takes out a page that the database no longer has.
    pub fn remove(&mut self, old: Option<PageSum>) {
        self.checksum = self.checksum.replace(old, None);
    }

    /// The change set of another node, which leads to `post`, and the checksum that it
    /// really leads to.
    pub fn build(self, facts: Facts, pages_before: u32, post: Pos) -> Result<(Change, Checksum), DbError> {
        let checksum = self.checksum;
        let spill = self.spill.map(SpillWriter::finish).transpose()?;
        let meta = ChangeMeta {
            db: facts.db,
            pre: facts.pre,
            post,
            page_size: self.page_size,
            commit: facts.commit,
            timestamp: facts.timestamp,
            wal: facts.wal,
            journal: facts.journal,
        };
        let removed = facts.commit.saturating_add(1)..=pages_before;
        Ok((Change { meta, pages: self.pages, removed, data: self.data, spill }, checksum))
    }

    /// The change set; `pages_before` is the size before. `None` if nothing changed.
    pub fn finish(self, facts: Facts, pages_before: u32) -> Result<Option<Change>, DbError> {
        self.finish_several(facts, 1, pages_before)
    }

    /// As `finish`, of so many transactions together.
    pub fn finish_several(
        self,
        facts: Facts,
        transactions: u64,
        pages_before: u32,
    ) -> Result<Option<Change>, DbError> {
        if self.pages.is_empty() && facts.commit == pages_before {
            return Ok(None);
        }
        let txid = Txid::new(facts.pre.txid.get() + transactions);
        let post = Pos { txid, checksum: self.checksum };
        self.build(facts, pages_before, post).map(|(change, _)| Some(change))
    }
}

impl Change {
    /// Adds the change set to a batch for the log.
    pub fn encode(&self, kind: Kind, batch: &mut Batch) {
        match self.spill {
            Some(spill) => batch.spilled(kind, &self.meta, &self.pages, spill),
            None => batch.change(kind, &self.meta, &self.pages, &[&self.data]),
        }
    }

    /// Lets go of page contents that are encoded.
    pub fn forget_data(&mut self) {
        self.data = Vec::new();
    }

    /// Enters the new checksums into the table. `afresh`: every page changed.
    pub fn enter(&self, sums: &mut Sums, afresh: bool) {
        if afresh || self.meta.commit == 0 {
            sums.clear();
        }
        for pgno in self.removed.clone().filter_map(Pgno::new) {
            sums.set(pgno, None);
        }
        for (pgno, sum) in &self.pages {
            sums.set(*pgno, Some(*sum));
        }
    }
}
