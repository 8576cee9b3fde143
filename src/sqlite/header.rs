//! The database header: the first 100 bytes of page 1 (file format §1.3).

use super::be32;
use crate::words::{PageSize, Pgno};

/// The length of the header in bytes.
pub const HEADER_LEN: usize = 100;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// What bytes 18 and 19 say about how the database is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JournalMode {
    /// Any of the rollback modes: DELETE, TRUNCATE, PERSIST, MEMORY, OFF.
    Rollback,
    /// WAL.
    Wal,
}

/// The header of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The page size.
    pub page_size: PageSize,
    /// Bytes at the end of each page that SQLite leaves to extensions.
    pub reserved: u8,
    /// Byte 18: 1 rollback, 2 WAL; more: SQLite opens the database read-only.
    pub write_version: u8,
    /// Byte 19: 1 rollback, 2 WAL; more: SQLite cannot read the database.
    pub read_version: u8,
    /// Counts transactions in the rollback modes.
    pub change_counter: u32,
    /// The size in pages as written here: `pages` tells whether it is valid.
    pub stated_pages: u32,
    /// The first trunk page of the freelist.
    pub freelist: Option<Pgno>,
    /// How many pages are on the freelist, trunks included.
    pub free_pages: u32,
    /// Counts changes of the schema.
    pub schema_cookie: u32,
    /// The change counter when `stated_pages` was written.
    pub version_valid_for: u32,
}

/// Whether a file that begins with `bytes` is a database that can be read: not an
/// encrypted one, not another file. An empty file is a database without pages, which
/// this cannot tell.
pub fn is_database(bytes: &[u8]) -> bool {
    Header::parse(bytes).is_some()
}

impl Header {
    /// The header of a database that begins with `bytes`; `None` if they are less
    /// than 100 or no such header.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        let header = bytes.first_chunk::<HEADER_LEN>()?;
        let &[hi, lo, write_version, read_version, reserved] = header.get(16..21)?.first_chunk()?;
        if !header.starts_with(MAGIC) {
            return None;
        }
        // 65536 does not fit two bytes and is written as 1.
        let page_size = match u16::from_be_bytes([hi, lo]) {
            1 => 65536,
            size => u32::from(size),
        };
        let page_size = PageSize::new(page_size).ok()?;
        // SQLite refuses less than 480 usable bytes (btree.c, lockBtree).
        if page_size.get() - u32::from(reserved) < 480 {
            return None;
        }
        Some(Header {
            page_size,
            reserved,
            write_version,
            read_version,
            change_counter: be32(header, 24)?,
            stated_pages: be32(header, 28)?,
            freelist: Pgno::new(be32(header, 32)?),
            free_pages: be32(header, 36)?,
            schema_cookie: be32(header, 40)?,
            version_valid_for: be32(header, 92)?,
        })
    }

    /// How SQLite opens the database (btree.c, lockBtree: byte 19).
    pub fn journal_mode(&self) -> JournalMode {
        if self.read_version == 2 { JournalMode::Wal } else { JournalMode::Rollback }
    }

    /// The size in pages as stated, if SQLite would believe it: it was written
    /// together with the change counter (file format §1.3.8).
    pub fn pages(&self) -> Option<u32> {
        (self.stated_pages != 0 && self.change_counter == self.version_valid_for).then_some(self.stated_pages)
    }

    /// The bytes of a page that SQLite uses.
    pub fn usable(&self) -> usize {
        self.page_size.len() - usize::from(self.reserved)
    }
}
