//! From a run of bytes to frames, whatever pieces the bytes come in.

use super::fields::Input;
use super::{HEAD, MAGIC, MAX_PAYLOAD, VERSION};

/// What is not a frame of this stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a stream of litefs at all.
    #[error("this is no stream of litefs")]
    NotAStream,
    /// A stream of another version.
    #[error(
        "the other node speaks version {0} of the stream, this one version {VERSION}: run the same version of \
         litefs on both"
    )]
    Version(u16),
    /// A frame longer than any.
    #[error("a frame of kind {kind} says that it has {len} bytes; none has more than {MAX_PAYLOAD}")]
    TooLong {
        /// Its kind.
        kind: u8,
        /// The length that it claims.
        len: u32,
    },
    /// A kind that is none, or not of this direction.
    #[error("there is no frame of kind {0} in this direction")]
    Kind(u8),
    /// A payload that is not what its kind says.
    #[error("a frame of kind {0} is damaged")]
    Payload(u8),
}

/// One direction of a stream.
pub trait Message: Sized {
    /// The frame of this kind with this payload; `None` if the payload is not one.
    ///
    /// # Errors
    /// `Kind` and `Version`.
    fn read(kind: u8, payload: &[u8]) -> Result<Option<Self>, Fault>;

    /// Appends the frame to `out`.
    fn write(&self, out: &mut Vec<u8>);
}

/// Collects bytes and gives frames. It holds at most one frame beside what it was
/// given last.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    from: usize,
}

impl Decoder {
    /// Nothing so far.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// More bytes have come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.from);
        self.from = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame; `None` if more bytes are needed.
    pub fn take_frame<M: Message>(&mut self) -> Result<Option<M>, Fault> {
        let rest = self.bytes.get(self.from..).unwrap_or_default();
        let Some((head, rest)) = rest.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [kind, len @ ..] = *head;
        let len = u32::from_be_bytes(len);
        if len as usize > MAX_PAYLOAD {
            return Err(Fault::TooLong { kind, len });
        }
        let Some(payload) = rest.get(..len as usize) else { return Ok(None) };
        let frame = M::read(kind, payload)?.ok_or(Fault::Payload(kind))?;
        self.from += HEAD + len as usize;
        Ok(Some(frame))
    }

    /// How many bytes wait for more.
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.from
    }
}

/// Writes a frame whose payload `fill` appends.
pub(super) fn frame(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(kind);
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let len = out.len() - start - HEAD;
    debug_assert!(len <= MAX_PAYLOAD, "BUG: a frame of {len} bytes");
    out[start + 1..start + HEAD].copy_from_slice(&(len as u32).to_be_bytes());
}

/// What both sides say first.
pub(super) fn put_version(out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_be_bytes());
}

/// Checks what the other side says first.
pub(super) fn version(input: &mut Input<'_>) -> Result<(), Fault> {
    if input.take(MAGIC.len()) != Some(&MAGIC) {
        return Err(Fault::NotAStream);
    }
    match input.u16() {
        Some(VERSION) => Ok(()),
        Some(other) => Err(Fault::Version(other)),
        None => Err(Fault::NotAStream),
    }
}
