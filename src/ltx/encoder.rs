//! Writing change sets. What would not be a sound change set is refused, not
//! written. Must not decide what is in one.

use std::io::Write;

use super::codec::Compressor;
use super::decoder::Sequence;
use super::{
    END_OF_PAGES, FLAG_SIZED, FRAME_HEADER_LEN, Fault, Form, Header, Index, LtxError, Payload, file_digest,
    file_sum,
};
use crate::words::{Checksum, PageSum, Pgno};

/// Writes a change set. It writes in small pieces: give it a buffered writer.
/// Memory: 12 bytes a page.
pub struct Encoder<W> {
    writer: W,
    header: Header,
    compressor: Compressor,
    digest: crc_fast::Digest,
    sequence: Sequence,
    index: Index,
    offset: u64,
    rolling: Checksum,
}

/// A change set that was written.
#[derive(Debug)]
pub struct Finished<W> {
    /// The writer; not flushed.
    pub writer: W,
    /// The length of the file in bytes.
    pub size: u64,
    /// Its checksum, as in its trailer.
    pub file_sum: u64,
    /// Where its pages are.
    pub index: Index,
}

impl<W: Write> Encoder<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// As all methods: `Write` if the writer fails, else `Refused`.
    pub fn new(writer: W, header: Header) -> Result<Encoder<W>, LtxError> {
        header.check().map_err(LtxError::Refused)?;
        let mut encoder = Encoder {
            writer,
            compressor: Compressor::new(header.codec, header.page_size)?,
            digest: file_digest(),
            sequence: Sequence::default(),
            index: Index::default(),
            offset: 0,
            rolling: Checksum::EMPTY,
            header,
        };
        let bytes = encoder.header.to_bytes();
        encoder.digest.update(&bytes);
        put(&mut encoder.writer, &mut encoder.offset, &bytes)?;
        Ok(encoder)
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How many bytes were written so far.
    pub fn written(&self) -> u64 {
        self.offset
    }

    /// Adds a page: ascending, within the database, never the lock page; of a
    /// snapshot every page.
    pub fn page(&mut self, pgno: Pgno, page: &[u8]) -> Result<(), LtxError> {
        self.accept(pgno, page)?;
        let Encoder { writer, compressor, digest, index, offset, .. } = self;
        add(writer, digest, index, offset, (pgno, page, compressor.compress(page)?))
    }

    /// Adds a page as `page` does, from another change set and without compressing
    /// it again if that one has the same codec. `payload` must be what the decoder
    /// gave together with `page`.
    pub fn copy(&mut self, pgno: Pgno, page: &[u8], payload: Payload<'_>) -> Result<(), LtxError> {
        if payload.packing != self.header.codec.packing() {
            return self.page(pgno, page);
        }
        self.accept(pgno, page)?;
        let Encoder { writer, digest, index, offset, .. } = self;
        add(writer, digest, index, offset, (pgno, page, payload.bytes))
    }

    fn accept(&mut self, pgno: Pgno, page: &[u8]) -> Result<(), LtxError> {
        if page.len() != self.header.page_size.len() {
            return Err(LtxError::Refused(Fault::PageLen(pgno, page.len())));
        }
        self.sequence.next(&self.header, pgno).map_err(LtxError::Refused)?;
        if self.header.is_snapshot() {
            self.rolling = self.rolling.toggle(PageSum::of(pgno, page));
        }
        Ok(())
    }

    /// The checksum of the pages so far: of a snapshot, what `finish` wants.
    pub fn rolling(&self) -> Checksum {
        self.rolling
    }

    /// Writes index and trailer. `post` is the checksum of the database afterwards;
    /// in the untracked form it is not written.
    pub fn finish(self, post: Checksum) -> Result<Finished<W>, LtxError> {
        self.sequence.end(&self.header).map_err(LtxError::Refused)?;
        self.check_post(post).map_err(LtxError::Refused)?;
        let Encoder { mut writer, header, mut digest, index, mut offset, .. } = self;
        digest.update(&END_OF_PAGES);
        put(&mut writer, &mut offset, &END_OF_PAGES)?;
        index.write(|bytes| {
            digest.update(bytes);
            put(&mut writer, &mut offset, bytes)
        })?;
        let stored = if header.form == Form::Tracked { post.get() } else { 0 };
        digest.update(&stored.to_be_bytes());
        let file_sum = file_sum(&digest);
        put(&mut writer, &mut offset, &stored.to_be_bytes())?;
        put(&mut writer, &mut offset, &file_sum.to_be_bytes())?;
        Ok(Finished { writer, size: offset, file_sum, index })
    }

    fn check_post(&self, post: Checksum) -> Result<(), Fault> {
        if self.header.is_drop() && post != Checksum::EMPTY {
            return Err(Fault::Checksum("post-apply", post.get()));
        }
        match self.header.form {
            Form::Untracked => return Ok(()),
            Form::NoChecksum { post: stated } if stated != post => {
                return Err(Fault::RollingSum { stored: stated.get(), computed: post.get() });
            }
            Form::NoChecksum { .. } | Form::Tracked => {}
        }
        if self.header.is_snapshot() && self.rolling != post {
            return Err(Fault::RollingSum { stored: post.get(), computed: self.rolling.get() });
        }
        Ok(())
    }
}

/// Writes one frame, which hashes as its header and the page as it is uncompressed.
fn add(
    writer: &mut impl Write,
    digest: &mut crc_fast::Digest,
    index: &mut Index,
    offset: &mut u64,
    (pgno, page, payload): (Pgno, &[u8], &[u8]),
) -> Result<(), LtxError> {
    let head = frame_header(pgno, payload)?;
    digest.update(&head);
    digest.update(page);
    put(writer, offset, &head)?;
    put(writer, offset, payload)?;
    index.push(pgno.get(), *offset);
    Ok(())
}

fn frame_header(pgno: Pgno, payload: &[u8]) -> Result<[u8; FRAME_HEADER_LEN], LtxError> {
    let too_long = || LtxError::Refused(Fault::PayloadSize(pgno.get(), payload.len() as u64));
    let size = u32::try_from(payload.len()).map_err(|_| too_long())?;
    let ([a, b, c, d], [e, f]) = (pgno.get().to_be_bytes(), FLAG_SIZED.to_be_bytes());
    let [g, h, i, j] = size.to_be_bytes();
    Ok([a, b, c, d, e, f, g, h, i, j])
}

fn put(writer: &mut impl Write, offset: &mut u64, bytes: &[u8]) -> Result<(), LtxError> {
    writer.write_all(bytes).map_err(|source| LtxError::Write { offset: *offset, source })?;
    *offset += bytes.len() as u64;
    Ok(())
}
