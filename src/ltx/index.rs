//! The page index at the end of a change set: where each page's frame lies, so that
//! single pages can be fetched with ranged reads. Must not read files: it is given
//! the bytes.

use super::{
    END_OF_PAGES, Fault, HEADER_LEN, Header, LEGACY_FRAME_HEADER_LEN, LtxError, TRAILER_LEN, Trailer,
};
use crate::words::Pgno;

/// How many bytes at the end of a file are worth reading first: the trailer and the
/// index of some thousand pages.
pub const TAIL_LEN: u64 = 32 * 1024;

const SIZE_LEN: usize = 8;

/// The index of one change set, ascending by page. 12 bytes a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    pages: Vec<u32>,
    /// Where each page's frame ends: the next one begins there.
    ends: Vec<u64>,
}

/// What the last bytes of a file give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// The index, and the trailer (not verified: only reading the whole file can).
    Index(Index, Trailer),
    /// So many bytes of the file's end are needed.
    NeedTail(u64),
}

impl Index {
    /// Reads the index from `tail`, the last bytes of a file of `file_size` bytes
    /// that has this header.
    ///
    /// # Errors
    /// `Damaged`, also if the index does not describe gapless frames of ascending
    /// pages within the database.
    pub fn from_tail(header: &Header, tail: &[u8], file_size: u64) -> Result<Located, LtxError> {
        let damaged =
            |fault| LtxError::Damaged { offset: file_size.saturating_sub(tail.len() as u64), fault };
        let fixed = (SIZE_LEN + TRAILER_LEN) as u64;
        if file_size < (HEADER_LEN + END_OF_PAGES.len() + 1) as u64 + fixed {
            return Err(damaged(Fault::Truncated));
        }
        let Some((rest, fixed_part)) = tail.split_last_chunk::<{ SIZE_LEN + TRAILER_LEN }>() else {
            return Ok(Located::NeedTail(fixed.max(TAIL_LEN).min(file_size)));
        };
        let Some((size, trailer)) = fixed_part.split_first_chunk::<SIZE_LEN>() else {
            return Err(damaged(Fault::Index));
        };
        let size = u64::from_be_bytes(*size);
        let begin = file_size.checked_sub(fixed).and_then(|end| end.checked_sub(size));
        let pages_end = begin.and_then(|begin| begin.checked_sub(END_OF_PAGES.len() as u64));
        let Some(pages_end) = pages_end.filter(|end| *end >= HEADER_LEN as u64) else {
            return Err(damaged(Fault::Index));
        };
        let Some(from) = usize::try_from(size).ok().and_then(|size| rest.len().checked_sub(size)) else {
            return Ok(Located::NeedTail(size + fixed));
        };
        let index = rest.get(from..).and_then(|entries| Index::parse(header, entries, pages_end));
        let trailer = Trailer::parse(header, trailer).map_err(damaged)?;
        index.map(|index| Located::Index(index, trailer)).ok_or_else(|| damaged(Fault::Index))
    }

    fn parse(header: &Header, mut entries: &[u8], pages_end: u64) -> Option<Index> {
        let mut index = Index::default();
        let (mut last, mut end) = (0, HEADER_LEN as u64);
        loop {
            let page = u32::try_from(uvarint(&mut entries)?).ok()?;
            if page == 0 {
                break;
            }
            let (offset, size) = (uvarint(&mut entries)?, uvarint(&mut entries)?);
            if page <= last || page > header.commit || page == header.page_size.lock_page().get() {
                return None;
            }
            if offset != end || size <= LEGACY_FRAME_HEADER_LEN as u64 {
                return None;
            }
            (last, end) = (page, offset.checked_add(size)?);
            index.push(page, end);
        }
        (entries.is_empty() && end == pages_end).then_some(index)
    }

    pub(super) fn push(&mut self, page: u32, end: u64) {
        self.pages.push(page);
        self.ends.push(end);
    }

    /// Where page `pgno`'s frame lies: offset in the file, and length.
    pub fn find(&self, pgno: Pgno) -> Option<(u64, u64)> {
        self.frame(self.pages.binary_search(&pgno.get()).ok()?)
    }

    fn frame(&self, at: usize) -> Option<(u64, u64)> {
        let end = *self.ends.get(at)?;
        let begin = match at.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => HEADER_LEN as u64,
        };
        Some((begin, end - begin))
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Every page with the offset and length of its frame, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Pgno, u64, u64)> + '_ {
        self.pages.iter().enumerate().filter_map(|(at, page)| {
            let (offset, len) = self.frame(at)?;
            Some((Pgno::new(*page)?, offset, len))
        })
    }

    /// Passes the bytes of the index (entries, terminator, length) to `sink` in
    /// pieces: the index of a large file is never held twice.
    pub(super) fn write<E>(&self, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        const PIECE: usize = 8 * 1024;
        let mut piece = Vec::with_capacity(PIECE + 64);
        let mut size = 1;
        for (page, offset, len) in self.iter() {
            let before = piece.len();
            for value in [u64::from(page.get()), offset, len] {
                put_uvarint(&mut piece, value);
            }
            size += (piece.len() - before) as u64;
            if piece.len() >= PIECE {
                sink(&piece)?;
                piece.clear();
            }
        }
        piece.push(0);
        piece.extend_from_slice(&size.to_be_bytes());
        sink(&piece)
    }
}

/// An unsigned LEB128 number, as encoding/binary's Uvarint.
fn uvarint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_uvarint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
