//! The header of a change set: what it changes, from which position to which.
//! Must not know pages.

use super::{Codec, Fault, HEADER_LEN, LtxError};
use crate::words::{Checksum, PageSize, Timestamp, Txid};

const MAGIC: [u8; 4] = *b"LTX1";
/// Pre- and post-apply checksum are 0 (superfly/ltx HeaderFlagNoChecksum): the only
/// form that Litestream restores.
const FLAG_NO_CHECKSUM: u32 = 0x0000_0002;
/// Our extension: payloads are zstd frames. Other readers refuse unknown flags.
const FLAG_ZSTD: u32 = 0x0100_0000;
/// Begins the reserved bytes where they carry our checksums.
const CARRIED: [u8; 4] = *b"LFS1";

/// What kind of checksums of the database a change set has. Its file checksum it
/// has always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Where the format has them: in the header and the trailer.
    Tracked,
    /// Where Litestream does not look: its own fields are 0, both checksums are in
    /// the reserved bytes of the header. So the checksum afterwards must be known
    /// before the first page is written.
    NoChecksum {
        /// The checksum of the database after it.
        post: Checksum,
    },
    /// None at all: files of Litestream itself.
    Untracked,
}

/// The part of a WAL that a change set was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// Where it begins in the WAL, never 0.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u64,
    /// The salts of the WAL.
    pub salt: [u32; 2],
}

/// The header of a change set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The database's page size.
    pub page_size: PageSize,
    /// The size of the database afterwards, in pages; 0 says that it was dropped.
    pub commit: u32,
    /// The first transaction in it; with 1 it is a snapshot and has every page.
    pub min: Txid,
    /// The last.
    pub max: Txid,
    /// When the last was committed.
    pub timestamp: Timestamp,
    /// The checksum of the database before it: `EMPTY` for a snapshot, and
    /// meaningless (`EMPTY`) in the untracked form.
    pub pre: Checksum,
    /// The part of the WAL that it was made of, if it was.
    pub wal: Option<WalRange>,
    /// The node that made it, or 0.
    pub node: u64,
    /// What checksums of the database it has.
    pub form: Form,
    /// How its pages are compressed.
    pub codec: Codec,
}

impl Header {
    /// Whether it has every page of the database: it begins with transaction 1.
    pub fn is_snapshot(&self) -> bool {
        self.min == Txid::new(1)
    }

    /// Whether it says that the database was dropped.
    pub fn is_drop(&self) -> bool {
        self.commit == 0
    }

    /// The header of the file that begins with `bytes` (at least `HEADER_LEN`).
    ///
    /// # Errors
    /// `Damaged` or `UnknownFlags`.
    pub fn parse(bytes: &[u8]) -> Result<Header, LtxError> {
        let damaged = |offset, fault| LtxError::Damaged { offset, fault };
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            let magic = bytes.starts_with(MAGIC.get(..bytes.len().min(4)).unwrap_or(&MAGIC));
            return Err(damaged(bytes.len() as u64, if magic { Fault::Truncated } else { Fault::Magic }));
        };
        if !bytes.starts_with(&MAGIC) {
            return Err(damaged(0, Fault::Magic));
        }
        let flags = u32_at(bytes, 4);
        if flags & !(FLAG_NO_CHECKSUM | FLAG_ZSTD) != 0 {
            return Err(LtxError::UnknownFlags(flags));
        }
        let page_size = PageSize::new(u32_at(bytes, 8)).map_err(|bad| damaged(8, Fault::PageSize(bad.0)))?;
        let (min, max) = (Txid::new(u64_at(bytes, 16)), Txid::new(u64_at(bytes, 24)));
        let (pre, form) = checksums(bytes, flags, min).map_err(|fault| damaged(40, fault))?;
        let header = Header {
            page_size,
            commit: u32_at(bytes, 12),
            min,
            max,
            timestamp: Timestamp::from_millis(u64_at(bytes, 32).cast_signed()),
            pre,
            wal: wal_range(bytes).ok_or_else(|| damaged(48, Fault::WalRange))?,
            node: u64_at(bytes, 72),
            form,
            codec: if flags & FLAG_ZSTD != 0 { Codec::Zstd { level: 0 } } else { Codec::Lz4 },
        };
        header.check().map_err(|fault| damaged(0, fault))?;
        Ok(header)
    }

    /// What would make this no sound header.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.min == Txid::ZERO || self.max < self.min {
            return Err(Fault::Txids(self.min, self.max));
        }
        if self.is_drop() && self.form != Form::Tracked {
            return Err(Fault::Dropped);
        }
        let pre_is_given = self.pre != Checksum::EMPTY;
        if pre_is_given && (self.is_snapshot() || self.form == Form::Untracked) {
            return Err(Fault::Checksum("pre-apply", self.pre.get()));
        }
        if let Some(wal) = self.wal
            && (wal.offset == 0 || wal.offset.cast_signed() < 0 || wal.size.cast_signed() < 0)
        {
            return Err(Fault::WalRange);
        }
        Ok(())
    }

    /// The bytes of the header.
    pub(super) fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let wal = self.wal.unwrap_or(WalRange { offset: 0, size: 0, salt: [0; 2] });
        let mut flags = 0;
        if self.form != Form::Tracked {
            flags |= FLAG_NO_CHECKSUM;
        }
        if let Codec::Zstd { .. } = self.codec {
            flags |= FLAG_ZSTD;
        }
        let pre = if self.form == Form::Tracked && !self.is_snapshot() { self.pre.get() } else { 0 };
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(&MAGIC);
        for word in [flags, self.page_size.get(), self.commit] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        let time = self.timestamp.millis().cast_unsigned();
        for word in [self.min.get(), self.max.get(), time, pre, wal.offset, wal.size] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        for word in wal.salt {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes.extend_from_slice(&self.node.to_be_bytes());
        if let Form::NoChecksum { post } = self.form {
            bytes.extend_from_slice(&CARRIED);
            bytes.extend_from_slice(&self.pre.get().to_be_bytes());
            bytes.extend_from_slice(&post.get().to_be_bytes());
        }
        let mut header = [0; HEADER_LEN];
        for (to, from) in header.iter_mut().zip(bytes) {
            *to = from;
        }
        header
    }
}

/// The checksum before, and the form.
fn checksums(bytes: &[u8; HEADER_LEN], flags: u32, min: Txid) -> Result<(Checksum, Form), Fault> {
    let stored = u64_at(bytes, 40);
    let bad = || Fault::Checksum("pre-apply", stored);
    if flags & FLAG_NO_CHECKSUM == 0 {
        if min == Txid::new(1) {
            return if stored == 0 { Ok((Checksum::EMPTY, Form::Tracked)) } else { Err(bad()) };
        }
        return Ok((Checksum::from_stored(stored).ok_or_else(bad)?, Form::Tracked));
    }
    if stored != 0 {
        return Err(bad());
    }
    if bytes.get(80..84) != Some(CARRIED.as_slice()) {
        return Ok((Checksum::EMPTY, Form::Untracked));
    }
    let carried = |at, name| {
        let value = u64_at(bytes, at);
        Checksum::from_stored(value).ok_or(Fault::Checksum(name, value))
    };
    Ok((carried(84, "pre-apply")?, Form::NoChecksum { post: carried(92, "post-apply")? }))
}

/// The WAL fields; `None` if they contradict each other.
fn wal_range(bytes: &[u8; HEADER_LEN]) -> Option<Option<WalRange>> {
    let (offset, size) = (u64_at(bytes, 48), u64_at(bytes, 56));
    let salt = [u32_at(bytes, 64), u32_at(bytes, 68)];
    if offset == 0 {
        return (size == 0 && salt == [0, 0]).then_some(None);
    }
    Some(Some(WalRange { offset, size, salt }))
}

fn u32_at(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_be_bytes(*word))
}

fn u64_at(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_be_bytes(*word))
}
