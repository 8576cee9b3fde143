//! What can be wrong with a change set. Must not decide what is done about it.

use std::io;

use crate::words::{Pgno, Txid};

/// A change set that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LtxError {
    /// The reader failed.
    #[error("reading a change set failed at byte {offset}: {source}")]
    Read {
        /// How far the reader had come.
        offset: u64,
        /// Its error.
        source: io::Error,
    },
    /// The writer failed.
    #[error("writing a change set failed at byte {offset}: {source}")]
    Write {
        /// How far the writer had come.
        offset: u64,
        /// Its error.
        source: io::Error,
    },
    /// The bytes are not a sound change set.
    #[error("the change set is damaged at byte {offset}: {fault}; take it from another copy")]
    Damaged {
        /// About where.
        offset: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// A header flag that this version does not know.
    #[error("the change set has header flags {0:#010x} that this version does not know; use a newer litefs")]
    UnknownFlags(u32),
    /// What the caller wants to encode would not be a sound change set.
    #[error("the change set cannot be encoded: {0}")]
    Refused(Fault),
}

impl LtxError {
    /// Whether the bytes themselves are at fault: reading them again will not help.
    pub fn is_damage(&self) -> bool {
        matches!(self, LtxError::Damaged { .. } | LtxError::UnknownFlags(_))
    }
}

/// What is wrong in a change set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The bytes end too early.
    #[error("it ends before its end")]
    Truncated,
    /// It does not begin as a change set does.
    #[error("it does not begin with \"LTX1\"")]
    Magic,
    /// A page size that is none.
    #[error("page size {0} is not a power of two from 512 to 65536")]
    PageSize(u32),
    /// TXIDs that are zero or in the wrong order.
    #[error("TXIDs {0}-{1} are zero or in the wrong order")]
    Txids(Txid, Txid),
    /// A checksum in the header or trailer that must not be there or must.
    #[error("the {0} checksum is {1:016x}, which this kind of change set cannot have")]
    Checksum(&'static str, u64),
    /// WAL fields that contradict each other.
    #[error("its WAL position is contradictory")]
    WalRange,
    /// A dropped database in a form that cannot say so.
    #[error("only a change set with checksums can say that a database was dropped (0 pages)")]
    Dropped,
    /// A change set without checksums where they are needed.
    #[error("it has no checksums of the database, which cannot be made up")]
    Untracked,
    /// A page beyond the size of the database.
    #[error("page {0} is beyond the {1} pages of the database")]
    BeyondEnd(u32, u32),
    /// The lock page.
    #[error("page {0} is the lock page, which holds no data")]
    LockPage(Pgno),
    /// A page after one with a higher or the same number.
    #[error("page {0} follows page {1}")]
    Order(Pgno, Pgno),
    /// A snapshot without a page.
    #[error("page {0} is missing from a snapshot")]
    Missing(Pgno),
    /// Flags of a page frame that are not defined.
    #[error("page {0} has unknown flags {1:#06x}")]
    PageFlags(u32, u16),
    /// A frame for another page than asked for.
    #[error("the frame is of page {0}, not of page {1}")]
    OtherPage(u32, Pgno),
    /// A compressed page that cannot be one.
    #[error("page {0} has a payload of {1} bytes, which cannot be right")]
    PayloadSize(u32, u64),
    /// A payload that does not decompress to a page.
    #[error("page {0} does not decompress to a page")]
    Payload(u32),
    /// Page data of another length than the page size.
    #[error("page {0} has {1} bytes of data")]
    PageLen(Pgno, usize),
    /// An index that does not say where the frames are.
    #[error("its page index does not match its pages")]
    Index,
    /// The file's own checksum is wrong.
    #[error("its file checksum is {stored:016x} but its bytes have {computed:016x}")]
    FileSum {
        /// What the trailer says.
        stored: u64,
        /// What the bytes have.
        computed: u64,
    },
    /// The pages of a snapshot do not have the checksum that the trailer states.
    #[error("its pages have the checksum {computed:016x} but it states {stored:016x}")]
    RollingSum {
        /// What is stated.
        stored: u64,
        /// What the pages have.
        computed: u64,
    },
    /// Bytes after the trailer.
    #[error("bytes follow its end")]
    Trailing,
    /// A codec that could not be set up or failed.
    #[error("its codec failed: {0}")]
    Codec(String),
}
