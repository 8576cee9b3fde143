//! A set of page numbers whose memory follows what is in it, not the largest.

use std::collections::HashMap;

use crate::words::Pgno;

/// A set of pages.
#[derive(Debug, Default)]
pub(super) struct PageSet(HashMap<u32, u64>);

impl PageSet {
    /// Adds a page; false if it was there.
    pub(super) fn insert(&mut self, pgno: Pgno) -> bool {
        let word = self.0.entry(pgno.get() / 64).or_default();
        let bit = 1 << (pgno.get() % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}
