//! Compressing and decompressing one page. Contexts are kept from page to page:
//! setting one up costs more than compressing a page. Must not know frames.

use std::cell::Cell;
use std::io::Read;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use serde::{Deserialize, Serialize};

use super::{Fault, LtxError};
use crate::words::PageSize;

/// How pages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Codec {
    /// LZ4 blocks: what every reader of the format understands.
    Lz4,
    /// One zstd frame a page: an extension that other readers refuse.
    Zstd {
        /// 1 (fast) to 19 (small). A file does not keep it: 0 after reading.
        level: i32,
    },
}

/// How the payload of a frame is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Lz4Block,
    /// Frames written by superfly/ltx before 0.5.2.
    Lz4Frame,
    Zstd,
}

impl Codec {
    pub(super) fn packing(self) -> Packing {
        match self {
            Codec::Lz4 => Packing::Lz4Block,
            Codec::Zstd { .. } => Packing::Zstd,
        }
    }
}

/// A page as it lies compressed in a file, for copying it into another file.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    pub(super) packing: Packing,
    pub(super) bytes: &'a [u8],
}

impl Payload<'_> {
    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// The longest payload that a page of this size can have: more is damage. LZ4 adds
/// 1/255 and 16 bytes at most, its frame format headers, zstd less than either.
pub(super) fn longest_payload(page_size: PageSize) -> u64 {
    u64::from(page_size.get()) + u64::from(page_size.get()) / 128 + 128
}

type Context = Box<zstd::bulk::Compressor<'static>>;

thread_local! {
    /// The zstd context that this thread used last, with its level: change sets of a
    /// page or two follow each other by the thousand.
    static KEPT: Cell<Option<(i32, Context)>> = const { Cell::new(None) };
}

/// Compresses pages.
pub(super) enum Compressor {
    Lz4 { table: Box<CompressTable>, out: Vec<u8> },
    Zstd { level: i32, context: Option<Context>, out: Vec<u8> },
}

impl Drop for Compressor {
    fn drop(&mut self) {
        if let Compressor::Zstd { level, context, .. } = self
            && let Some(context) = context.take()
        {
            // A thread that ends has no use for it.
            let _ = KEPT.try_with(|kept| kept.set(Some((*level, context))));
        }
    }
}

impl Compressor {
    pub(super) fn new(codec: Codec, page_size: PageSize) -> Result<Compressor, LtxError> {
        match codec {
            Codec::Lz4 => Ok(Compressor::Lz4 {
                table: Box::default(),
                out: vec![0; get_maximum_output_size(page_size.len())],
            }),
            Codec::Zstd { level } => Ok(Compressor::Zstd {
                level,
                context: Some(match KEPT.take().filter(|(kept, _)| *kept == level) {
                    Some((_, context)) => context,
                    None => Box::new(zstd::bulk::Compressor::new(level).map_err(|e| failed(&e))?),
                }),
                out: Vec::with_capacity(zstd::zstd_safe::compress_bound(page_size.len())),
            }),
        }
    }

    /// The compressed page.
    pub(super) fn compress(&mut self, page: &[u8]) -> Result<&[u8], LtxError> {
        match self {
            Compressor::Lz4 { table, out } => {
                let len = compress_into_with_table(page, out, table).map_err(|e| failed(&e))?;
                out.get(..len).ok_or_else(|| failed(&"impossible length"))
            }
            Compressor::Zstd { context, out, .. } => {
                let context = context.as_mut().ok_or_else(|| failed(&"no context"))?;
                context.compress_to_buffer(page, out).map_err(|e| failed(&e))?;
                Ok(out)
            }
        }
    }
}

fn failed(error: &dyn std::fmt::Display) -> LtxError {
    LtxError::Refused(Fault::Codec(error.to_string()))
}

/// Decompresses pages.
#[derive(Default)]
pub(super) struct Decompressor {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decompressor {
    /// Decompresses `payload` into `page`, which must be filled exactly; false if
    /// the payload is damaged.
    pub(super) fn decompress(&mut self, packing: Packing, payload: &[u8], page: &mut [u8]) -> bool {
        match packing {
            Packing::Lz4Block => decompress_into(payload, page).is_ok_and(|len| len == page.len()),
            Packing::Lz4Frame => {
                let mut reader = lz4_flex::frame::FrameDecoder::new(payload);
                // Reading on to the end makes the decoder check the content checksum.
                reader.read_exact(page).is_ok() && reader.read(&mut [0]).is_ok_and(|len| len == 0)
            }
            Packing::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Decompressor::new().ok();
                }
                let Some(context) = &mut self.zstd else { return false };
                context.decompress_to_buffer(payload, page).is_ok_and(|len| len == page.len())
            }
        }
    }
}

/// Reads one LZ4 frame (lz4_Frame_format.md of the LZ4 project) without knowing its
/// length beforehand: `read` appends so many bytes of the file to the buffer.
/// Returns false if it is not such a frame or longer than `limit`.
pub(super) fn read_lz4_frame(
    buffer: &mut Vec<u8>,
    limit: u64,
    mut read: impl FnMut(&mut Vec<u8>, usize) -> Result<(), LtxError>,
) -> Result<bool, LtxError> {
    const MAGIC: [u8; 4] = 0x184d_2204_u32.to_le_bytes();
    buffer.clear();
    read(buffer, 6)?;
    let &[a, b, c, d, flags, _] = buffer.as_slice() else { return Ok(false) };
    let (block_sums, content_size) = (flags & 0x10 != 0, flags & 0x08 != 0);
    let (content_sum, dictionary) = (flags & 0x04 != 0, flags & 0x01 != 0);
    if [a, b, c, d] != MAGIC || dictionary {
        return Ok(false);
    }
    read(buffer, if content_size { 9 } else { 1 })?;
    loop {
        let start = buffer.len();
        read(buffer, 4)?;
        let Some(Ok(word)) = buffer.get(start..).map(<[u8; 4]>::try_from) else { return Ok(false) };
        let word = u32::from_le_bytes(word);
        if word == 0 {
            break;
        }
        // The top bit only says that the block is stored as it is.
        let block = u64::from(word & 0x7fff_ffff) + if block_sums { 4 } else { 0 };
        if buffer.len() as u64 + block > limit {
            return Ok(false);
        }
        read(buffer, usize::try_from(block).unwrap_or(usize::MAX))?;
    }
    if content_sum {
        read(buffer, 4)?;
    }
    Ok(true)
}
