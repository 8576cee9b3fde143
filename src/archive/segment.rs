//! A segment of the log: the change sets that were put at once, in commit order,
//! or the seal that begins an epoch. Must not know stores.
//!
//! Bytes, big-endian: fixed head (96) | entries | checksum of head and entries (8) |
//! bodies. The checksum covers the bodies' checksum, which the head has, and the
//! checksum of the segment before: so it stands for the whole log up to here.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest, checksum};
use serde::{Deserialize, Serialize};

use super::bytes::{Input, Output};
use super::change::{Body, ChangeSet, Entry, Place, read_entries, write_entries};
use crate::words::{ClusterId, Epoch, NodeId, Seq, Timestamp};

const MAGIC: [u8; 8] = *b"LITEFSLG";
const VERSION: u32 = 1;
const FIXED: usize = 96;
const FLAG_SEAL: u32 = 1;
/// More than any list of entries can be long: a segment has at most some megabytes.
const MAX_INDEX: u32 = 64 << 20;

/// Who writes: a node, and a number made up each time that it becomes a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterId {
    /// The node.
    pub node: NodeId,
    /// The number of its term.
    pub nonce: u64,
}

/// The head of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// Which cluster's log it belongs to.
    pub cluster: ClusterId,
    /// The epoch in which it was written.
    pub epoch: Epoch,
    /// Who wrote it.
    pub writer: WriterId,
    /// Its number.
    pub seq: Seq,
    /// The checksum of the segment before it.
    pub prev: u64,
    /// When it was written.
    pub timestamp: Timestamp,
    /// Whether it begins its epoch. It has no entries then.
    pub seal: bool,
}

/// A segment without its bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its head.
    pub head: SegmentHead,
    /// Its change sets, in commit order.
    pub entries: Vec<Entry>,
    /// Its checksum.
    pub sum: u64,
    /// The size of the whole object in bytes.
    pub size: u64,
}

/// What makes bytes no segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentFault {
    /// So many bytes of its beginning are needed.
    #[error("it ends before its end ({0} bytes are needed)")]
    Short(u64),
    /// It does not begin as a segment does.
    #[error("it does not begin with \"LITEFSLG\"")]
    Magic,
    /// Written by a newer litefs.
    #[error("it has version {0}, which this litefs does not know; use a newer one")]
    Version(u32),
    /// Its head or list of entries is damaged.
    #[error("its head is damaged")]
    Head,
    /// Its bodies are damaged.
    #[error("its change sets are damaged")]
    Body,
}

/// The bytes of a segment, and what `decode` would make of them.
pub fn encode(head: SegmentHead, changes: &[(ChangeSet, Place)]) -> (Bytes, Segment) {
    let mut index = Vec::new();
    write_entries(&mut index, changes.iter().map(|(set, place)| (&set.db, &set.change, place)));
    let mut body_sum = Digest::new(CrcAlgorithm::Crc64Nvme);
    let mut body_len = 0_u64;
    for bytes in changes.iter().filter_map(inline) {
        body_sum.update(bytes);
        body_len += bytes.len() as u64;
    }
    let mut out = Vec::with_capacity(FIXED + index.len() + 8 + usize::try_from(body_len).unwrap_or(0));
    out.extend_from_slice(&MAGIC);
    out.u32(VERSION);
    out.u32(u32::try_from(index.len()).unwrap_or(u32::MAX));
    for word in [head.cluster.get(), head.epoch.get(), head.writer.node.get(), head.writer.nonce] {
        out.u64(word);
    }
    out.u64(head.seq.get());
    out.u64(head.prev);
    out.u64(head.timestamp.millis().cast_unsigned());
    out.u32(if head.seal { FLAG_SEAL } else { 0 });
    out.u32(u32::try_from(changes.len()).unwrap_or(u32::MAX));
    out.u64(body_len);
    out.u64(body_sum.finalize());
    out.extend_from_slice(&index);
    let sum = checksum(CrcAlgorithm::Crc64Nvme, &out);
    out.u64(sum);
    let mut offset = out.len() as u64;
    let mut entries = Vec::with_capacity(changes.len());
    for change in changes {
        let (set, place) = change;
        let mut place = place.clone();
        if let Some(bytes) = inline(change) {
            let len = bytes.len() as u64;
            place = Place::Here { offset, len };
            offset += len;
            out.extend_from_slice(bytes);
        }
        entries.push(Entry { db: set.db.clone(), change: set.change, place });
    }
    let size = out.len() as u64;
    (out.into(), Segment { head, entries, sum, size })
}

fn inline((set, place): &(ChangeSet, Place)) -> Option<&Bytes> {
    match (&set.body, place) {
        (Body::Bytes(bytes), Place::Here { .. }) => Some(bytes),
        _ => None,
    }
}

/// Reads head and entries from the beginning of a segment. The bodies are not
/// looked at.
///
/// # Errors
/// `Short` says how many bytes are needed.
pub fn decode_head(bytes: &[u8]) -> Result<Segment, SegmentFault> {
    parse(bytes).map(|(segment, _)| segment)
}

/// Reads and checks a whole segment.
///
/// # Errors
/// What makes it no segment.
pub fn decode(bytes: &[u8]) -> Result<Segment, SegmentFault> {
    let (segment, (body_at, body_sum)) = parse(bytes)?;
    if (bytes.len() as u64) < segment.size {
        return Err(SegmentFault::Short(segment.size));
    }
    let body = bytes.get(body_at..).unwrap_or_default();
    if bytes.len() as u64 != segment.size || checksum(CrcAlgorithm::Crc64Nvme, body) != body_sum {
        return Err(SegmentFault::Body);
    }
    Ok(segment)
}

/// The segment, where its bodies begin, and their checksum.
fn parse(bytes: &[u8]) -> Result<(Segment, (usize, u64)), SegmentFault> {
    let fixed = bytes.get(..FIXED).ok_or_else(|| {
        let begin = MAGIC.get(..bytes.len().min(MAGIC.len())).unwrap_or(&MAGIC);
        if bytes.starts_with(begin) { SegmentFault::Short(FIXED as u64) } else { SegmentFault::Magic }
    })?;
    let mut input = Input(fixed);
    if input.take(MAGIC.len()) != Some(&MAGIC) {
        return Err(SegmentFault::Magic);
    }
    let version = input.u32().ok_or(SegmentFault::Head)?;
    if version != VERSION {
        return Err(SegmentFault::Version(version));
    }
    let index_len = input.u32().filter(|len| *len <= MAX_INDEX).ok_or(SegmentFault::Head)?;
    let index_end = FIXED + index_len as usize;
    let body_at = index_end + 8;
    let Some(stored) = bytes.get(index_end..body_at).and_then(|sum| Input(sum).u64()) else {
        return Err(SegmentFault::Short(body_at as u64));
    };
    let covered = bytes.get(..index_end).ok_or(SegmentFault::Head)?;
    if checksum(CrcAlgorithm::Crc64Nvme, covered) != stored {
        return Err(SegmentFault::Head);
    }
    let entries = covered.get(FIXED..).ok_or(SegmentFault::Head)?;
    let (segment, body_sum) = parse_fields(&mut input, entries, body_at as u64, stored)
        .filter(|(segment, _)| !segment.head.seal || segment.entries.is_empty())
        .ok_or(SegmentFault::Head)?;
    Ok((segment, (body_at, body_sum)))
}

fn parse_fields(input: &mut Input<'_>, entries: &[u8], body_at: u64, sum: u64) -> Option<(Segment, u64)> {
    let cluster = ClusterId::new(input.u64()?);
    let epoch = Epoch::new(input.u64()?);
    let writer = WriterId { node: NodeId::new(input.u64()?), nonce: input.u64()? };
    let (seq, prev) = (Seq::new(input.u64()?), input.u64()?);
    let timestamp = Timestamp::from_millis(input.u64()?.cast_signed());
    let flags = input.u32()?;
    let (count, body_len, body_sum) = (input.u32()?, input.u64()?, input.u64()?);
    let head = SegmentHead { cluster, epoch, writer, seq, prev, timestamp, seal: flags & FLAG_SEAL != 0 };
    let entries = read_entries(entries, count, body_at, body_len)?;
    let size = body_at.checked_add(body_len)?;
    (flags & !FLAG_SEAL == 0).then_some((Segment { head, entries, sum, size }, body_sum))
}
