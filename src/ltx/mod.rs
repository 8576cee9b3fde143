//! LTX, the change set: one or more transactions of a database as a file of whole
//! pages (format v3 of superfly/ltx, byte by byte in docs/FORMATS.md). Pure: bytes
//! in, bytes out. Must not know files, stores or SQLite.
//!
//! A file is: header (100 bytes) | page frames | 6 zero bytes | page index |
//! length of the index (8) | trailer (16). All integers are big-endian.
//!
//! What this reader checks beyond superfly's: order and duplicates of pages, that
//! a snapshot is complete, that the index is what the frames are, that a page
//! decompresses to exactly a page, that nothing follows the trailer.

mod codec;
mod decoder;
mod encoder;
mod error;
mod header;
mod index;
pub mod inspect;
mod name;

pub use codec::{Codec, Payload};
pub use decoder::{Decoder, FrameDecoder, Trailer};
pub use encoder::{Encoder, Finished};
pub use error::{Fault, LtxError};
pub use header::{Form, Header, WalRange};
pub use index::{Index, Located, TAIL_LEN};
pub use name::{format_name, parse_name};

#[cfg(test)]
mod tests;

/// The length of a header in bytes: the first frame begins here.
pub const HEADER_LEN: usize = 100;

/// The length of a trailer in bytes.
pub const TRAILER_LEN: usize = 16;

/// Ends the page frames: a frame header of zeroes, page 0 being no page.
const END_OF_PAGES: [u8; 6] = [0; 6];

/// The frame is `pgno (4) | flags (2) | payload length (4) | payload`.
const FRAME_HEADER_LEN: usize = 10;

/// A frame of superfly/ltx before 0.5.2: `pgno (4) | 0 (2) | LZ4 frame`.
const LEGACY_FRAME_HEADER_LEN: usize = 6;

/// The one page flag: a payload length follows, and the payload is a block.
const FLAG_SIZED: u16 = 1;

/// The running checksum of a file.
fn file_digest() -> crc_fast::Digest {
    crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso)
}

/// A file's checksum from its digest: bit 63 is always set.
fn file_sum(digest: &crc_fast::Digest) -> u64 {
    digest.finalize() | 1 << 63
}
