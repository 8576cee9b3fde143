//! LTX checksums (facts: LTX §1.5): CRC-64/GO-ISO, bit 63 always set; a database's
//! checksum is the XOR of its pages' checksums, the lock page excluded.

use std::fmt;
use std::str::FromStr;

use crc_fast::{CrcAlgorithm, Digest};

use super::Pgno;

const FLAG: u64 = 1 << 63;

/// The checksum of one page: of its number (big-endian) and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageSum(u64);

impl PageSum {
    /// What page `pgno` with content `data` adds to its database's checksum.
    pub fn of(pgno: Pgno, data: &[u8]) -> PageSum {
        let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
        digest.update(&pgno.get().to_be_bytes());
        digest.update(data);
        PageSum(digest.finalize() | FLAG)
    }

    /// The value, bit 63 set.
    pub fn get(self) -> u64 {
        self.0
    }

    /// A stored value; `None` without bit 63, which every page checksum has (so
    /// that 0 can stand for "no page").
    pub fn from_stored(value: u64) -> Option<PageSum> {
        (value & FLAG != 0).then_some(PageSum(value))
    }
}

/// The checksum of a whole database: `1<<63 | XOR of all page checksums`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum(u64);

impl Checksum {
    /// The checksum of a database without pages.
    pub const EMPTY: Checksum = Checksum(FLAG);

    /// A checksum from its value; `None` without bit 63.
    pub fn from_stored(value: u64) -> Option<Checksum> {
        (value & FLAG != 0).then_some(Checksum(value))
    }

    /// The value, bit 63 set.
    pub fn get(self) -> u64 {
        self.0
    }

    /// This checksum with a page added, or taken away if it was there.
    #[must_use]
    pub fn toggle(self, page: PageSum) -> Checksum {
        Checksum(FLAG | (self.0 ^ page.0))
    }

    /// This checksum with page content `old` (if there was any) replaced by `new`
    /// (if there is any).
    #[must_use]
    pub fn replace(self, old: Option<PageSum>, new: Option<PageSum>) -> Checksum {
        let without = old.map_or(self, |old| self.toggle(old));
        new.map_or(without, |new| without.toggle(new))
    }
}

impl fmt::Display for Checksum {
    /// Sixteen lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checksum({self})")
    }
}

impl FromStr for Checksum {
    type Err = String;
    fn from_str(text: &str) -> Result<Checksum, String> {
        let bad = || format!("{text:?} is not a checksum (16 hexadecimal digits, the first at least 8)");
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        u64::from_str_radix(text, 16).ok().and_then(Checksum::from_stored).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sums_match_the_golden_vector_of_the_format() {
        let (one, two) = (Pgno::FIRST, Pgno::new(2).expect("not zero"));
        let first = PageSum::of(one, &[0x11; 512]);
        assert_eq!(first.get(), 0xf1b1_444f_ecd9_9000);
        let both = Checksum::EMPTY.toggle(first).toggle(PageSum::of(two, &[0x22; 512]));
        assert_eq!(both.get(), 0xa2d3_ccd0_0000_0000);
    }

    #[test]
    fn replacing_a_page_and_back_changes_nothing() {
        let (old, new) = (PageSum::of(Pgno::FIRST, b"a"), PageSum::of(Pgno::FIRST, b"b"));
        let start = Checksum::EMPTY.replace(None, Some(old));
        assert_eq!(start.replace(Some(old), Some(new)).replace(Some(new), Some(old)), start);
        assert_eq!(start.replace(Some(old), None), Checksum::EMPTY);
    }
}
