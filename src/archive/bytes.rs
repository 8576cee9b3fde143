//! Reading numbers and texts from untrusted bytes, little by little and checked.
//! Must not allocate what the bytes only claim.

use crate::words::Pos;
use crate::words::{Checksum, Txid};

/// What is left to read.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn pos(&mut self) -> Option<Pos> {
        let txid = Txid::new(self.u64()?);
        Some(Pos { txid, checksum: Checksum::from_stored(self.u64()?)? })
    }

    pub(super) fn text(&mut self) -> Option<&'a str> {
        let len = usize::from(self.u16()?);
        std::str::from_utf8(self.take(len)?).ok()
    }
}

/// Big-endian output.
pub(super) trait Output {
    fn u16(&mut self, value: u16);
    fn u32(&mut self, value: u32);
    fn u64(&mut self, value: u64);
    fn pos(&mut self, pos: Pos);
    /// At most 65535 bytes of text; names and keys are far shorter.
    fn text(&mut self, text: &str);
}

impl Output for Vec<u8> {
    fn u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn pos(&mut self, pos: Pos) {
        self.u64(pos.txid.get());
        self.u64(pos.checksum.get());
    }

    fn text(&mut self, text: &str) {
        self.u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
        self.extend_from_slice(text.as_bytes().get(..usize::from(u16::MAX)).unwrap_or(text.as_bytes()));
    }
}
