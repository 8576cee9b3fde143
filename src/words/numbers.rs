//! Numbers that mean something: page sizes and page numbers (SQLite), TXIDs and
//! positions (LTX), epochs and segment numbers (the archive). Must not do I/O.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Checksum;

/// Byte offset of SQLite's lock page: the page that holds this byte is never
/// written (SQLite file format §1.4).
const PENDING_BYTE: u64 = 0x4000_0000;

/// The size of a database page in bytes: a power of two from 512 to 65536
/// (SQLite file format §1.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PageSize(u32);

/// A number that is no page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a page size (a power of two from 512 to 65536)")]
pub struct BadPageSize(pub u32);

impl PageSize {
    /// A page size, or `BadPageSize`.
    pub fn new(bytes: u32) -> Result<PageSize, BadPageSize> {
        if (512..=65536).contains(&bytes) && bytes.is_power_of_two() {
            Ok(PageSize(bytes))
        } else {
            Err(BadPageSize(bytes))
        }
    }

    /// The size in bytes.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes, for slices.
    #[allow(clippy::len_without_is_empty, reason = "no page is empty")]
    pub fn len(self) -> usize {
        self.0 as usize
    }

    /// Where page `pgno` begins in the database file.
    pub fn offset_of(self, pgno: Pgno) -> u64 {
        (u64::from(pgno.get()) - 1) * u64::from(self.0)
    }

    /// The page that holds the byte at `offset`; `None` beyond the largest database.
    pub fn page_at(self, offset: u64) -> Option<Pgno> {
        u32::try_from(offset / u64::from(self.0)).ok()?.checked_add(1).and_then(Pgno::new)
    }

    /// The lock page: SQLite never writes it, it has no checksum, and no change
    /// set carries it.
    pub fn lock_page(self) -> Pgno {
        Pgno((PENDING_BYTE / u64::from(self.0)) as u32 + 1)
    }
}

impl TryFrom<u32> for PageSize {
    type Error = BadPageSize;
    fn try_from(bytes: u32) -> Result<PageSize, BadPageSize> {
        PageSize::new(bytes)
    }
}

impl From<PageSize> for u32 {
    fn from(size: PageSize) -> u32 {
        size.0
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A page number: pages of a database count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pgno(u32);

impl Pgno {
    /// The first page, which holds the database header.
    pub const FIRST: Pgno = Pgno(1);

    /// A page number; `None` for 0.
    pub fn new(number: u32) -> Option<Pgno> {
        (number != 0).then_some(Pgno(number))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Every page from the first to `count`.
    pub fn up_to(count: u32) -> impl DoubleEndedIterator<Item = Pgno> {
        (1..=count).map(Pgno)
    }
}

impl fmt::Display for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A transaction ID: each committed transaction of a database has the next one,
/// the first has 1. Zero is the position before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(u64);

impl Txid {
    /// Before the first transaction.
    pub const ZERO: Txid = Txid(0);

    /// The TXID with this number.
    pub fn new(number: u64) -> Txid {
        Txid(number)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The one after this; saturates at the largest (2^64 - 1 is never reached).
    pub fn next(self) -> Txid {
        Txid(self.0.saturating_add(1))
    }
}

impl fmt::Display for Txid {
    /// Sixteen lower-case hexadecimal digits, as in LTX file names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Txid {
    type Err = String;
    /// One to sixteen hexadecimal digits.
    fn from_str(text: &str) -> Result<Txid, String> {
        if text.is_empty() || text.len() > 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("{text:?} is not a TXID (up to 16 hexadecimal digits)"));
        }
        u64::from_str_radix(text, 16).map(Txid).map_err(|error| error.to_string())
    }
}

/// Where a database stands: its last transaction, and the checksum of the whole
/// database after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pos {
    /// The last transaction.
    pub txid: Txid,
    /// The checksum of the database after it.
    pub checksum: Checksum,
}

impl Pos {
    /// The position of a database that has no transaction.
    pub const ZERO: Pos = Pos { txid: Txid::ZERO, checksum: Checksum::EMPTY };
}

impl Default for Pos {
    fn default() -> Pos {
        Pos::ZERO
    }
}

impl fmt::Display for Pos {
    /// `txid/checksum`, 33 characters, as LiteFS writes it into `<db>-pos`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.txid, self.checksum)
    }
}

impl FromStr for Pos {
    type Err = String;
    fn from_str(text: &str) -> Result<Pos, String> {
        let bad = || format!("{text:?} is not a position (txid/checksum, 16 hexadecimal digits each)");
        let (txid, checksum) = text.split_once('/').ok_or_else(bad)?;
        if txid.len() != 16 {
            return Err(bad());
        }
        Ok(Pos { txid: txid.parse().map_err(|_| bad())?, checksum: checksum.parse().map_err(|_| bad())? })
    }
}

impl TryFrom<String> for Pos {
    type Error = String;
    fn try_from(text: String) -> Result<Pos, String> {
        text.parse()
    }
}

impl From<Pos> for String {
    fn from(pos: Pos) -> String {
        pos.to_string()
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The value with this number.
            pub fn new(number: u64) -> $name {
                $name(number)
            }

            /// The number.
            pub fn get(self) -> u64 {
                self.0
            }

            /// The one after this.
            pub fn next(self) -> $name {
                $name(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// A generation of the lease: it only grows, and a node commits only in an
    /// epoch that it holds.
    Epoch
}

counter! {
    /// The number of a segment of the archive's log; the first is 1.
    Seq
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_powers_of_two_from_512_to_65536() {
        for bytes in [512, 1024, 4096, 65536] {
            assert_eq!(PageSize::new(bytes).map(PageSize::get), Ok(bytes));
        }
        for bytes in [0, 1, 256, 513, 4095, 131_072, u32::MAX] {
            assert_eq!(PageSize::new(bytes), Err(BadPageSize(bytes)));
        }
    }

    #[test]
    fn lock_page_is_the_page_at_one_gibibyte() {
        for (bytes, page) in [(512, 2_097_153), (4096, 262_145), (65536, 16_385)] {
            assert_eq!(PageSize::new(bytes).map(|size| size.lock_page().get()), Ok(page));
        }
    }

    #[test]
    fn a_position_reads_back_what_it_prints() {
        let text = "000000000000002a/8000000000000001";
        assert_eq!(text.parse::<Pos>().map(|pos| pos.to_string()), Ok(text.to_owned()));
        for bad in ["", "2a/8000000000000001", "000000000000002a", "000000000000002a/0000000000000001"] {
            assert!(bad.parse::<Pos>().is_err(), "{bad:?}");
        }
    }
}
