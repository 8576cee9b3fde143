//! The freelist: trunk pages that list free leaf pages (file format §1.5). SQLite
//! neither reads nor journals free leaf pages; their bytes mean nothing.

use std::io;

use super::bitmap::PageSet;
use super::{be32, header::Header};
use crate::words::Pgno;

/// The pages on a freelist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freelist {
    /// The trunk pages in their order; they are part of the database's structure.
    pub trunks: Vec<Pgno>,
    /// The free leaf pages, ascending.
    pub leaves: Vec<Pgno>,
}

impl Freelist {
    /// Whether a page is a free leaf.
    pub fn is_leaf(&self, pgno: Pgno) -> bool {
        self.leaves.binary_search(&pgno).is_ok()
    }
}

/// A freelist that could not be walked.
#[derive(Debug, thiserror::Error)]
pub enum FreelistError {
    /// A page could not be read.
    #[error("reading the freelist's page {page} failed: {source}")]
    Read {
        /// The page.
        page: Pgno,
        /// Why.
        source: io::Error,
    },
    /// The list contradicts itself.
    #[error("the freelist is damaged at page {page}: {what}; run PRAGMA integrity_check")]
    Damaged {
        /// The trunk page.
        page: Pgno,
        /// What is wrong.
        what: &'static str,
    },
}

/// Walks the freelist of a database of `pages` pages with this header. `read` fills
/// the buffer, one page long, with a page.
///
/// # Errors
/// `Read` if `read` fails; `Damaged` if the list has a cycle, a page beyond the end,
/// a page twice, or another length than stated.
pub fn walk(
    header: &Header,
    pages: u32,
    mut read: impl FnMut(Pgno, &mut [u8]) -> io::Result<()>,
) -> Result<Freelist, FreelistError> {
    let mut list = Freelist::default();
    let mut seen = PageSet::default();
    let mut trunk = vec![0; header.page_size.len()];
    let mut next = header.freelist;
    while let Some(page) = next {
        let damaged = |what| FreelistError::Damaged { page, what };
        let valid = |page: Pgno| page.get() > 1 && page.get() <= pages;
        if !valid(page) {
            return Err(damaged("no such page"));
        }
        if !seen.insert(page) {
            return Err(damaged("it is in the list twice"));
        }
        read(page, &mut trunk).map_err(|source| FreelistError::Read { page, source })?;
        list.trunks.push(page);
        let usable = trunk.get(..header.usable()).unwrap_or_default();
        let count = be32(usable, 4).map_or(usize::MAX, |count| count as usize);
        let room = usable.len() / 4 - 2;
        if count > room {
            return Err(damaged("it lists more pages than fit"));
        }
        for at in 0..count {
            let leaf = be32(usable, 8 + 4 * at).and_then(Pgno::new).filter(|leaf| valid(*leaf));
            let leaf = leaf.ok_or_else(|| damaged("it lists a page that does not exist"))?;
            if !seen.insert(leaf) {
                return Err(damaged("it lists a page twice"));
            }
            list.leaves.push(leaf);
        }
        next = be32(usable, 0).and_then(Pgno::new);
    }
    if (list.trunks.len() + list.leaves.len()) as u64 != u64::from(header.free_pages) {
        let what = "the number of free pages in the header is another";
        return Err(FreelistError::Damaged { page: Pgno::FIRST, what });
    }
    list.leaves.sort_unstable();
    Ok(list)
}
