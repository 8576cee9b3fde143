//! The rollback journal (file format §3): what playing it back would restore. It
//! follows pager.c (readJournalHdr, pager_playback, pager_playback_one_page,
//! readSuperJournal), since that decides what a hot journal means.
//!
//! A journal is segments of header and records; each header begins at a multiple of
//! the sector size. Records before the first invalid one count.

use std::io;

use super::{ReadAt, be32};
use crate::words::{PageSize, Pgno};

/// What a journal begins with, once SQLite has synced it; zeroes before that and
/// after a commit with journal_mode=PERSIST.
pub const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// The part of a header that is used; the rest of its sector is not.
pub const HEADER_LEN: usize = 28;

/// The record count of a journal that is not synced: as many as the file holds.
const UNTIL_END: u32 = u32::MAX;

/// The longest name of a super-journal that SQLite reads (MAX_PATHNAME of os_unix.c).
const MAX_SUPER: u64 = 512;

/// Shorter journals are not played back: what SQLite takes for the sector size before
/// it has read the header (pager.c, setSectorSize).
const MIN_LEN: u64 = 512;

/// The header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How many records follow; `None`: as many as the file holds.
    pub records: Option<u32>,
    /// Where the checksums of the records begin; another one for each segment, so
    /// it also tells transactions apart.
    pub nonce: u32,
    /// The size of the database before the transaction, in pages.
    pub pages: u32,
    /// The sector size: only the first header's counts.
    pub sector_size: u32,
    /// The page size: only the first header's counts. SQLite before 3.5.8 wrote
    /// none.
    pub page_size: Option<PageSize>,
}

impl Header {
    /// The first header of a journal that begins with `bytes`; `None` if SQLite
    /// would not play it back: no magic, or impossible sizes.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        let header = Header::parse_later(bytes)?;
        let sector_is_valid = (32..=65536).contains(&header.sector_size);
        let page_is_valid = header.page_size.is_some() || be32(bytes, 24) == Some(0);
        (sector_is_valid && header.sector_size.is_power_of_two() && page_is_valid).then_some(header)
    }

    /// The header of a later segment, of which SQLite ignores the sizes.
    fn parse_later(bytes: &[u8]) -> Option<Header> {
        if !bytes.starts_with(&MAGIC) {
            return None;
        }
        let records = be32(bytes, 8)?;
        Some(Header {
            records: (records != UNTIL_END).then_some(records),
            nonce: be32(bytes, 12)?,
            pages: be32(bytes, 16)?,
            sector_size: be32(bytes, 20)?,
            page_size: PageSize::new(be32(bytes, 24)?).ok(),
        })
    }

    /// The first header of a journal.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(journal: &(impl ReadAt + ?Sized)) -> io::Result<Option<Header>> {
        let mut bytes = [0; HEADER_LEN];
        let len = journal.read_upto(&mut bytes, 0)?;
        Ok(bytes.get(..len).and_then(Header::parse))
    }
}

/// Whether SQLite would take a journal for hot that begins with `bytes`, if nobody
/// holds RESERVED and the database is not empty: it is not empty and its first byte
/// is not 0 (pager.c, hasHotJournal). Whether anything is then played back is told
/// by `Playback::open`.
pub fn looks_hot(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|byte| *byte != 0)
}

/// Whether a journal of `len` bytes has a valid header and, after the records that it
/// counts, neither another segment nor a super-journal's name: nothing that could be taken
/// for a part of a later journal once that has overwritten the first of it.
///
/// # Errors
/// Those of reading.
pub fn is_one_segment(journal: &(impl ReadAt + ?Sized), len: u64) -> io::Result<bool> {
    let Some(Header { records, sector_size, page_size: Some(page_size), .. }) = Header::read(journal)? else {
        return Ok(false);
    };
    let magic_at = |at: u64| {
        let mut bytes = [0; MAGIC.len()];
        Ok::<_, io::Error>(journal.read_upto(&mut bytes, at)? == bytes.len() && bytes == MAGIC)
    };
    if magic_at(len.saturating_sub(MAGIC.len() as u64))? {
        return Ok(false);
    }
    // Where SQLite does not sync (no record count) it writes one segment.
    let Some(records) = records else { return Ok(true) };
    let (sector, record) = (u64::from(sector_size), u64::from(page_size.get()) + 8);
    let end = sector + u64::from(records) * record;
    Ok(!magic_at(end.next_multiple_of(sector))?)
}

/// The name of the super-journal that a journal of `len` bytes ends with: its
/// transaction spans files, and is committed once that file is gone, whatever the
/// journal holds. The bytes are a path as the application sees it.
///
/// # Errors
/// Those of reading.
pub fn super_journal(journal: &(impl ReadAt + ?Sized), len: u64) -> io::Result<Option<Vec<u8>>> {
    let mut tail = [0; 16];
    let Some(at) = len.checked_sub(tail.len() as u64) else { return Ok(None) };
    if journal.read_upto(&mut tail, at)? != tail.len() || !tail.ends_with(&MAGIC) {
        return Ok(None);
    }
    let (name_len, stored) = (u64::from(be32(&tail, 0).unwrap_or(0)), be32(&tail, 4).unwrap_or(0));
    let Some(at) = at.checked_sub(name_len).filter(|_| (1..=MAX_SUPER).contains(&name_len)) else {
        return Ok(None);
    };
    let mut name = vec![0; usize::try_from(name_len).unwrap_or(0)];
    if journal.read_upto(&mut name, at)? != name.len() {
        return Ok(None);
    }
    // The sum of chars, which are signed on some machines and not on others.
    let signed = name.iter().fold(0u32, |sum, byte| sum.wrapping_add_signed(i32::from(byte.cast_signed())));
    let unsigned = name.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    let sound = (stored == signed || stored == unsigned) && is_super_name(&name);
    Ok(sound.then_some(name))
}

/// Whether a path is one that SQLite gives to super-journals: it ends with `-mj`, six
/// hexadecimal digits, `9` and two more (pager.c, pagerIsSuperJrnlName).
pub fn is_super_name(path: &[u8]) -> bool {
    let Some((_, [b'-', b'm', b'j', digits @ ..])) = path.split_last_chunk::<12>() else { return false };
    digits.iter().all(u8::is_ascii_hexdigit) && digits.get(6) == Some(&b'9')
}

/// A page as it was before the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The page.
    pub pgno: Pgno,
    /// Where its content begins in the journal.
    pub offset: u64,
}

/// What playing back a hot journal restores, record by record: make the database
/// `pages` long (shorter or longer), then write each record's content to its page.
#[derive(Debug)]
pub struct Playback<R> {
    journal: R,
    len: u64,
    header: Header,
    page_size: PageSize,
    /// Where the next record or header is.
    at: u64,
    nonce: u32,
    /// Records left in this segment.
    left: u64,
    record: Vec<u8>,
    ended: bool,
    cut: bool,
}

impl<R: ReadAt> Playback<R> {
    /// Begins the playback of a journal of `len` bytes; `None` if there is nothing
    /// to do. `page_size` is the database's, for journals that do not say theirs.
    /// Ask first whether a super-journal is named and gone.
    ///
    /// # Errors
    /// Those of reading, as all methods.
    pub fn open(journal: R, len: u64, page_size: PageSize) -> io::Result<Option<Playback<R>>> {
        let Some(header) = Header::read(&journal)? else { return Ok(None) };
        if len < MIN_LEN {
            return Ok(None);
        }
        let mut playback = Playback {
            journal,
            len,
            header,
            page_size: header.page_size.unwrap_or(page_size),
            at: u64::from(header.sector_size),
            nonce: header.nonce,
            left: 0,
            record: Vec::new(),
            ended: false,
            cut: false,
        };
        playback.left = playback.records_of(header);
        Ok(Some(playback))
    }

    /// The first header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The size in pages that the database gets back.
    pub fn pages(&self) -> u32 {
        self.header.pages
    }

    /// The page size.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// A record: page number, content, checksum.
    fn record_len(&self) -> u64 {
        u64::from(self.page_size.get()) + 8
    }

    fn records_of(&self, header: Header) -> u64 {
        let sector = u64::from(self.header.sector_size);
        // As SQLite computes it; only a journal's first header says "until the end".
        let until_end = self.len.saturating_sub(sector) / self.record_len();
        header.records.map_or(until_end, u64::from)
    }

    /// Reads the next page to restore into `page` (made as long as a page); `None`
    /// after the last. SQLite writes each page once into a journal; if one comes again,
    /// it is to be written again.
    pub fn next_record(&mut self, page: &mut Vec<u8>) -> io::Result<Option<Record>> {
        page.resize(self.page_size.len(), 0);
        while !self.ended {
            if self.left == 0 {
                self.ended = !self.next_segment()?;
                continue;
            }
            let at = self.at;
            let Some((number, sum)) = self.read_record(at, page)? else {
                self.cut_off();
                break;
            };
            (self.at, self.left) = (at + self.record_len(), self.left - 1);
            let Some(pgno) = Pgno::new(number).filter(|pgno| *pgno != self.page_size.lock_page()) else {
                self.cut_off();
                break;
            };
            if number > self.header.pages {
                continue;
            }
            if checksum(self.nonce, page) != sum {
                self.cut_off();
                break;
            }
            return Ok(Some(Record { pgno, offset: at + 4 }));
        }
        Ok(None)
    }

    /// Whether a record that a header counts was missing or not valid: SQLite counts what
    /// is durable, so the journal is not as it wrote it.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    fn cut_off(&mut self) {
        self.ended = true;
        self.cut = self.header.records.is_some();
    }

    /// Reads the record at `at`; `None` if the file ends in it.
    fn read_record(&mut self, at: u64, page: &mut [u8]) -> io::Result<Option<(u32, u32)>> {
        if at.saturating_add(self.record_len()) > self.len {
            return Ok(None);
        }
        // One read a record: number, content and checksum lie together.
        self.record.resize(page.len() + 8, 0);
        if self.journal.read_upto(&mut self.record, at)? != self.record.len() {
            return Ok(None);
        }
        let content = self.record.get(4..4 + page.len()).unwrap_or_default();
        page.copy_from_slice(content);
        Ok(be32(&self.record, 0).zip(be32(&self.record, 4 + page.len())))
    }

    /// Goes to the next header; false if there is none.
    fn next_segment(&mut self) -> io::Result<bool> {
        let sector = u64::from(self.header.sector_size);
        let at = self.at.checked_next_multiple_of(sector);
        let Some(at) = at.filter(|at| at.saturating_add(sector) <= self.len) else { return Ok(false) };
        let mut bytes = [0; HEADER_LEN];
        let read = self.journal.read_upto(&mut bytes, at)?;
        let Some(header) = bytes.get(..read).and_then(Header::parse_later) else { return Ok(false) };
        self.nonce = header.nonce;
        self.left = self.records_of(header);
        self.at = at + sector;
        Ok(true)
    }
}

/// Every 200th byte from the end, added to the nonce (file format §3).
fn checksum(nonce: u32, page: &[u8]) -> u32 {
    let bytes = page.iter().rev().skip(199).step_by(200);
    // The byte at offset 0 is never part of it, whatever the page size: none is a
    // multiple of 200.
    bytes.fold(nonce, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}
