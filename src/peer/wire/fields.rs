//! Fields of a payload. Reading takes nothing for granted.

use crate::words::{Checksum, ClusterId, DbName, NodeId, PageSize, Pos, Timestamp, Txid};

use super::{MAX_POSITIONS, MAX_TEXT};

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut len = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    out.extend_from_slice(&(len as u16).to_be_bytes());
    out.extend_from_slice(&text.as_bytes()[..len]);
}

pub(super) fn put_pos(out: &mut Vec<u8>, pos: Pos) {
    out.extend_from_slice(&pos.txid.get().to_be_bytes());
    out.extend_from_slice(&pos.checksum.get().to_be_bytes());
}

pub(super) fn put_positions(out: &mut Vec<u8>, positions: &[(DbName, Pos)]) {
    out.extend_from_slice(&(positions.len() as u16).to_be_bytes());
    for (db, pos) in positions {
        put_text(out, db.as_str());
        put_pos(out, *pos);
    }
}

/// A payload that is read from its beginning.
pub(super) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn text(&mut self) -> Option<&'a str> {
        let len = usize::from(self.u16()?);
        if len > MAX_TEXT {
            return None;
        }
        std::str::from_utf8(self.take(len)?).ok()
    }

    pub fn db(&mut self) -> Option<DbName> {
        DbName::new(self.text()?).ok()
    }

    pub fn pos(&mut self) -> Option<Pos> {
        let (txid, checksum) = (Txid::new(self.u64()?), Checksum::from_stored(self.u64()?)?);
        Some(Pos { txid, checksum })
    }

    pub fn positions(&mut self) -> Option<Vec<(DbName, Pos)>> {
        let count = usize::from(self.u16()?);
        if count > MAX_POSITIONS {
            return None;
        }
        (0..count).map(|_| Some((self.db()?, self.pos()?))).collect()
    }

    pub fn node(&mut self) -> Option<NodeId> {
        self.u64().map(NodeId::new)
    }

    pub fn cluster(&mut self) -> Option<ClusterId> {
        self.u64().map(ClusterId::new)
    }

    pub fn page_size(&mut self) -> Option<PageSize> {
        PageSize::new(self.u32()?).ok()
    }

    pub fn time(&mut self) -> Option<Timestamp> {
        self.u64().map(|millis| Timestamp::from_millis(millis.cast_signed()))
    }
}
