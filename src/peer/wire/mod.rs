//! What nodes say to each other on a stream, as bytes: frames of a kind, a length and
//! a payload. Pure: bytes in, frames out, every length bounded before it is believed.
//! Must not know sockets, databases or what a change set holds.
//!
//! Format: docs/FORMATS.md §The stream between nodes. All integers are big-endian.
//!
//! The replica says who it is and where its databases stand (`Hello`, `At`…, `Ready`),
//! and from then on that it is alive (`Beat`) and where it stands (`At`). The primary
//! says who it is (`Welcome`), and then change sets in the order of their commits
//! (`Change`, `Data`…, `Done`), and between them what holds.

mod decoder;
mod down;
mod fields;
mod up;

pub use decoder::{Decoder, Fault, Message};
pub use down::{Beat, ChangeHead, Down, Ending, Welcome};
pub use up::{Hello, Up};

#[cfg(test)]
mod tests;

/// What this version speaks. Another version is refused, whichever it is.
pub const VERSION: u16 = 1;

/// The first bytes of a stream, before its version: what is not one is told apart
/// from what is another version.
const MAGIC: [u8; 4] = *b"LFST";

/// The longest payload of a frame.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// The longest run of a change set's bytes in one frame.
pub const MAX_DATA: usize = MAX_PAYLOAD;

/// The longest text that is sent or believed: a name, a hostname.
pub const MAX_TEXT: usize = 1024;

/// So many positions are in one frame at most: a name has up to 1024 bytes.
pub const MAX_POSITIONS: usize = 60;

/// A frame before its payload: kind (1), length of the payload (4).
const HEAD: usize = 5;
