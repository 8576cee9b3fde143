//! A pack: the transactions of one database one by one, taken out of the log's
//! segments, so that every moment stays restorable after these are gone. Must not
//! know stores.
//!
//! Bytes, big-endian: fixed head (32) | entries | checksum of head and entries (8) |
//! bodies, each a whole LTX, which has its own checksum.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};

use super::bytes::{Input, Output};
use super::change::{Change, Entry, Place, read_entries, write_entries};
use crate::words::DbName;

const MAGIC: [u8; 8] = *b"LITEFSPK";
const VERSION: u32 = 1;
const FIXED: usize = 32;
const MAX_INDEX: u32 = 256 << 20;

/// What makes bytes no pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackFault {
    /// So many bytes of its beginning are needed.
    #[error("it ends before its end ({0} bytes are needed)")]
    Short(u64),
    /// It does not begin as a pack does.
    #[error("it does not begin with \"LITEFSPK\"")]
    Magic,
    /// Written by a newer litefs.
    #[error("it has version {0}, which this litefs does not know; use a newer one")]
    Version(u32),
    /// Its list of entries is damaged.
    #[error("its list of change sets is damaged")]
    Head,
}

/// The bytes of a pack of these change sets of `db`.
pub fn encode(db: &DbName, changes: &[(Change, Bytes)]) -> Bytes {
    let places: Vec<Place> =
        changes.iter().map(|(_, ltx)| Place::Here { offset: 0, len: ltx.len() as u64 }).collect();
    let mut index = Vec::new();
    write_entries(&mut index, changes.iter().zip(&places).map(|((change, _), place)| (db, change, place)));
    let body_len: usize = changes.iter().map(|(_, ltx)| ltx.len()).sum();
    let mut out = Vec::with_capacity(FIXED + index.len() + 8 + body_len);
    out.extend_from_slice(&MAGIC);
    out.u32(VERSION);
    out.u32(u32::try_from(index.len()).unwrap_or(u32::MAX));
    out.u64(changes.len() as u64);
    out.u64(body_len as u64);
    out.extend_from_slice(&index);
    let sum = checksum(CrcAlgorithm::Crc64Nvme, &out);
    out.u64(sum);
    for (_, ltx) in changes {
        out.extend_from_slice(ltx);
    }
    out.into()
}

/// Reads the list of change sets from the beginning of a pack.
///
/// # Errors
/// `Short` says how many bytes are needed.
pub fn decode_head(bytes: &[u8]) -> Result<Vec<Entry>, PackFault> {
    let fixed = bytes.get(..FIXED).ok_or_else(|| {
        let begin = MAGIC.get(..bytes.len().min(MAGIC.len())).unwrap_or(&MAGIC);
        if bytes.starts_with(begin) { PackFault::Short(FIXED as u64) } else { PackFault::Magic }
    })?;
    let mut input = Input(fixed);
    if input.take(MAGIC.len()) != Some(&MAGIC) {
        return Err(PackFault::Magic);
    }
    let version = input.u32().ok_or(PackFault::Head)?;
    if version != VERSION {
        return Err(PackFault::Version(version));
    }
    let index_len = input.u32().filter(|len| *len <= MAX_INDEX).ok_or(PackFault::Head)?;
    let index_end = FIXED + index_len as usize;
    let body_at = index_end + 8;
    let Some(stored) = bytes.get(index_end..body_at).and_then(|sum| Input(sum).u64()) else {
        return Err(PackFault::Short(body_at as u64));
    };
    let covered = bytes.get(..index_end).ok_or(PackFault::Head)?;
    if checksum(CrcAlgorithm::Crc64Nvme, covered) != stored {
        return Err(PackFault::Head);
    }
    let count = input.u64().and_then(|count| u32::try_from(count).ok()).ok_or(PackFault::Head)?;
    let body_len = input.u64().ok_or(PackFault::Head)?;
    let entries = covered.get(FIXED..).ok_or(PackFault::Head)?;
    read_entries(entries, count, body_at as u64, body_len).ok_or(PackFault::Head)
}
