//! The wal-index, `-shm`: its header says which frames of the WAL are committed
//! (file format §4.5, wal.c). It is in the machine's byte order and shared by
//! processes that change it: read it as bytes, then parse.

use super::ne32;
use super::wal::checksum_native;
use crate::words::PageSize;

/// Both copies of the header and the checkpoint information.
pub const LEN: usize = 136;

/// One copy of the header.
const COPY_LEN: usize = 48;

/// The only version there is (WALINDEX_MAX_VERSION).
const VERSION: u32 = 3_007_000;

/// Bytes of `-shm` that SQLite locks (file format §4.5, wal.c: WAL_*_LOCK).
pub mod lock {
    /// Held exclusively while appending to the WAL, until the commit is published.
    pub const WRITE: u64 = 120;
    /// Held exclusively by a checkpoint.
    pub const CHECKPOINT: u64 = 121;
    /// Held exclusively by recovery.
    pub const RECOVER: u64 = 122;
    /// The first of the five read locks.
    pub const READ: u64 = 123;
    /// Held shared by every connection (the "dead man switch").
    pub const DMS: u64 = 128;
}

/// Why the bytes are no wal-index that can be believed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Less than `LEN` bytes, or only zeroes.
    #[error("the wal-index is not initialised")]
    Uninitialised,
    /// The copies differ: a writer is at work, or died at work.
    #[error("the two copies of the wal-index's header differ: a writer is publishing, or died publishing")]
    Torn,
    /// The header's checksum is wrong.
    #[error("the wal-index's header has a wrong checksum")]
    Checksum,
    /// Another version.
    #[error("the wal-index has version {0}, not 3007000")]
    Version(u32),
    /// A page size that is none.
    #[error("the wal-index has a page size that is none")]
    PageSize,
}

/// The header of a wal-index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalIndex {
    /// Counts changes of the header.
    pub change: u32,
    /// Whether the WAL's checksums are big-endian.
    pub big_endian: bool,
    /// The page size.
    pub page_size: PageSize,
    /// How many frames of the WAL are committed.
    pub frames: u32,
    /// The size of the database in pages, with these frames.
    pub pages: u32,
    /// The checksum of the last of these frames.
    pub frame_sum: [u32; 2],
    /// The salts of the WAL that it speaks of.
    pub salt: [u32; 2],
    /// How many frames a checkpoint has copied to the database.
    pub backfilled: u32,
    /// How many frames a checkpoint has begun to copy: at least `backfilled`.
    pub backfill_attempted: u32,
    /// The frames up to which readers read; `u32::MAX` is unused.
    pub read_marks: [u32; 5],
}

impl WalIndex {
    /// Parses the first `LEN` bytes of `-shm`.
    ///
    /// # Errors
    /// Why they cannot be believed, in the order in which SQLite looks
    /// (walIndexTryHdr): differing copies come first.
    pub fn parse(bytes: &[u8]) -> Result<WalIndex, Unusable> {
        let bytes = bytes.first_chunk::<LEN>().ok_or(Unusable::Uninitialised)?;
        WalIndex::parse_fields(bytes).ok_or(Unusable::Uninitialised)?
    }

    /// `None` cannot happen: every offset is below `LEN`.
    fn parse_fields(bytes: &[u8; LEN]) -> Option<Result<WalIndex, Unusable>> {
        let (one, rest) = bytes.split_first_chunk::<COPY_LEN>()?;
        if !rest.starts_with(one) {
            return Some(Err(Unusable::Torn));
        }
        let &[initialised, big_endian, size_a, size_b] = one.get(12..16)?.first_chunk()?;
        if initialised == 0 {
            return Some(Err(Unusable::Uninitialised));
        }
        let sum = checksum_native(one.get(..40)?, [0, 0]);
        if sum != [ne32(one, 40)?, ne32(one, 44)?] {
            return Some(Err(Unusable::Checksum));
        }
        let version = ne32(one, 0)?;
        if version != VERSION {
            return Some(Err(Unusable::Version(version)));
        }
        let Some(page_size) = page_size(u16::from_ne_bytes([size_a, size_b])) else {
            return Some(Err(Unusable::PageSize));
        };
        // SQLite copies the salts from the WAL's header byte by byte: they alone are
        // big-endian.
        let salt = |at| ne32(one, at).map(u32::from_be);
        let mark = |at: usize| ne32(bytes, 100 + 4 * at);
        Some(Ok(WalIndex {
            change: ne32(one, 8)?,
            big_endian: big_endian != 0,
            page_size,
            frames: ne32(one, 16)?,
            pages: ne32(one, 20)?,
            frame_sum: [ne32(one, 24)?, ne32(one, 28)?],
            salt: [salt(32)?, salt(36)?],
            backfilled: ne32(bytes, 96)?,
            backfill_attempted: ne32(bytes, 128)?,
            read_marks: [mark(0)?, mark(1)?, mark(2)?, mark(3)?, mark(4)?],
        }))
    }
}

/// Offsets in `-shm` of what checkpoints and readers change (WalCkptInfo).
pub mod at {
    /// How many frames are in the database.
    pub const BACKFILLED: u64 = 96;
    /// The first of the five read marks.
    pub const READ_MARKS: u64 = 100;
    /// How many frames a checkpoint has begun to copy.
    pub const BACKFILL_ATTEMPTED: u64 = 128;
}

impl WalIndex {
    /// One copy of the header; both are the same.
    pub fn to_copy(&self) -> [u8; COPY_LEN] {
        let mut copy = [0; COPY_LEN];
        let size = self.page_size.get();
        // 65536 is written as 1 (walIndexWriteHdr).
        let size = u16::try_from(size & 0xff00 | size >> 16).unwrap_or_default().to_ne_bytes();
        let [[sum_a, sum_b], [salt_a, salt_b]] = [self.frame_sum, self.salt.map(u32::to_be)];
        let flags = u32::from_ne_bytes([1, u8::from(self.big_endian), size[0], size[1]]);
        let words =
            [VERSION, 0, self.change, flags, self.frames, self.pages, sum_a, sum_b, salt_a, salt_b, 0, 0];
        for (to, word) in copy.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        let sum = checksum_native(copy.get(..40).unwrap_or_default(), [0, 0]);
        for (to, word) in copy.chunks_exact_mut(4).skip(10).zip(sum) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        copy
    }

    /// The first `LEN` bytes of a `-shm` file that nobody uses yet.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let copy = self.to_copy();
        let marks = self.read_marks;
        let words = [self.backfilled].into_iter().chain(marks);
        for (to, word) in bytes.chunks_exact_mut(4).skip(24).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        for (to, byte) in bytes.iter_mut().zip(copy.into_iter().chain(copy)) {
            *to = byte;
        }
        for (to, byte) in bytes.iter_mut().skip(128).zip(self.backfill_attempted.to_ne_bytes()) {
            *to = byte;
        }
        bytes
    }
}

/// 65536 does not fit 16 bits and is written as 1 (walIndexWriteHdr).
fn page_size(stored: u16) -> Option<PageSize> {
    PageSize::new(u32::from(stored & 0xfe00) + (u32::from(stored & 1) << 16)).ok()
}
