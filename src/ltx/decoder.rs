//! Reading change sets: a whole file as a stream, or one frame of it. Everything is
//! verified; memory is bounded by what was really read, never by what a length
//! field claims.

use std::io::{self, Read};

use super::codec::{Decompressor, Packing, longest_payload, read_lz4_frame};
use super::{
    END_OF_PAGES, FLAG_SIZED, FRAME_HEADER_LEN, Fault, Form, HEADER_LEN, Header, Index,
    LEGACY_FRAME_HEADER_LEN, LtxError, Payload, TRAILER_LEN, file_digest, file_sum,
};
use crate::words::{Checksum, PageSum, Pgno};

/// The end of a change set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The checksum of the database afterwards; `None` in the untracked form.
    pub post: Option<Checksum>,
    /// The checksum of the file.
    pub file_sum: u64,
}

impl Trailer {
    pub(super) fn parse(header: &Header, bytes: &[u8]) -> Result<Trailer, Fault> {
        let bytes: &[u8; TRAILER_LEN] = bytes.try_into().map_err(|_| Fault::Truncated)?;
        let [a, b, c, d, e, f, g, h, sum @ ..] = *bytes;
        let stored = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let bad = || Fault::Checksum("post-apply", stored);
        let post = match header.form {
            Form::Tracked => Some(Checksum::from_stored(stored).ok_or_else(bad)?),
            Form::NoChecksum { post } if stored == 0 => Some(post),
            Form::Untracked if stored == 0 => None,
            Form::NoChecksum { .. } | Form::Untracked => return Err(bad()),
        };
        if header.is_drop() && post != Some(Checksum::EMPTY) {
            return Err(bad());
        }
        Ok(Trailer { post, file_sum: u64::from_be_bytes(sum) })
    }
}

/// The pages of a change set in their order, ascending: what may follow what.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    last: Option<Pgno>,
}

impl Sequence {
    /// The next page is `pgno`.
    pub(super) fn next(&mut self, header: &Header, pgno: Pgno) -> Result<(), Fault> {
        if pgno.get() > header.commit {
            return Err(Fault::BeyondEnd(pgno.get(), header.commit));
        }
        if pgno == header.page_size.lock_page() {
            return Err(Fault::LockPage(pgno));
        }
        if let Some(last) = self.last.filter(|last| *last >= pgno) {
            return Err(Fault::Order(pgno, last));
        }
        if let Some(expected) = self.expected(header).filter(|expected| *expected != pgno) {
            return Err(Fault::Missing(expected));
        }
        self.last = Some(pgno);
        Ok(())
    }

    /// There is no further page.
    pub(super) fn end(&self, header: &Header) -> Result<(), Fault> {
        match self.expected(header) {
            Some(missing) if missing.get() <= header.commit => Err(Fault::Missing(missing)),
            _ => Ok(()),
        }
    }

    /// The page that must come next in a snapshot.
    fn expected(&self, header: &Header) -> Option<Pgno> {
        if !header.is_snapshot() {
            return None;
        }
        let lock = header.page_size.lock_page();
        let after = |page: Pgno| page.get().checked_add(1).and_then(Pgno::new);
        let next = self.last.map_or(Some(Pgno::FIRST), after)?;
        if next == lock { after(next) } else { Some(next) }
    }
}

/// A reader that hashes and counts.
struct Source<R> {
    reader: R,
    offset: u64,
}

impl<R: Read> Source<R> {
    fn fill(&mut self, into: &mut [u8]) -> Result<(), LtxError> {
        match self.reader.read_exact(into) {
            Ok(()) => {
                self.offset += into.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.damaged(Fault::Truncated)),
            Err(source) => Err(LtxError::Read { offset: self.offset, source }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LtxError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether the reader is at its end.
    fn at_end(&mut self) -> Result<bool, LtxError> {
        loop {
            match self.reader.read(&mut [0]) {
                Ok(len) => return Ok(len == 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(LtxError::Read { offset: self.offset, source }),
            }
        }
    }

    fn damaged(&self, fault: Fault) -> LtxError {
        LtxError::Damaged { offset: self.offset, fault }
    }
}

/// Reads a change set from its begin to its end. It reads in small pieces: give it
/// a buffered reader. Nothing read from it may be trusted before `finish`.
pub struct Decoder<R> {
    source: Source<R>,
    header: Header,
    digest: crc_fast::Digest,
    decompressor: Decompressor,
    packing: Packing,
    payload: Vec<u8>,
    sequence: Sequence,
    index: Index,
    rolling: Checksum,
    ended: bool,
}

impl<R: Read> Decoder<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// As all methods: `Read` if the reader fails, else `Damaged` or `UnknownFlags`.
    pub fn new(reader: R) -> Result<Decoder<R>, LtxError> {
        let mut source = Source { reader, offset: 0 };
        let bytes = source.array::<HEADER_LEN>()?;
        let header = Header::parse(&bytes)?;
        let mut digest = file_digest();
        digest.update(&bytes);
        Ok(Decoder {
            source,
            packing: header.codec.packing(),
            header,
            digest,
            decompressor: Decompressor::default(),
            payload: Vec::new(),
            sequence: Sequence::default(),
            index: Index::default(),
            rolling: Checksum::EMPTY,
            ended: false,
        })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the next page into `page` (made as long as a page); `None` after the
    /// last.
    pub fn next_page(&mut self, page: &mut Vec<u8>) -> Result<Option<Pgno>, LtxError> {
        if self.ended {
            return Ok(None);
        }
        let head = self.source.array::<LEGACY_FRAME_HEADER_LEN>()?;
        let [a, b, c, d, flags @ ..] = head;
        let (number, flags) = (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes(flags));
        self.digest.update(&head);
        if head == END_OF_PAGES {
            self.sequence.end(&self.header).map_err(|fault| self.source.damaged(fault))?;
            self.ended = true;
            return Ok(None);
        }
        let pgno = Pgno::new(number).ok_or_else(|| self.source.damaged(Fault::PageFlags(number, flags)))?;
        self.sequence.next(&self.header, pgno).map_err(|fault| self.source.damaged(fault))?;
        self.read_payload(number, flags)?;
        page.resize(self.header.page_size.len(), 0);
        if !self.decompressor.decompress(self.packing, &self.payload, page) {
            return Err(self.source.damaged(Fault::Payload(number)));
        }
        self.digest.update(page);
        if self.header.is_snapshot() {
            self.rolling = self.rolling.toggle(PageSum::of(pgno, page));
        }
        self.index.push(number, self.source.offset);
        Ok(Some(pgno))
    }

    fn read_payload(&mut self, number: u32, flags: u16) -> Result<(), LtxError> {
        let limit = longest_payload(self.header.page_size);
        self.packing = packing(&self.header, flags)
            .ok_or_else(|| self.source.damaged(Fault::PageFlags(number, flags)))?;
        if self.packing == Packing::Lz4Frame {
            let source = &mut self.source;
            let is_frame = read_lz4_frame(&mut self.payload, limit, |buffer, len| {
                let start = buffer.len();
                buffer.resize(start + len, 0);
                source.fill(buffer.get_mut(start..).unwrap_or_default())
            })?;
            return if is_frame { Ok(()) } else { Err(self.source.damaged(Fault::Payload(number))) };
        }
        let size = self.source.array::<4>()?;
        self.digest.update(&size);
        let size = u32::from_be_bytes(size);
        if size == 0 || u64::from(size) > limit {
            return Err(self.source.damaged(Fault::PayloadSize(number, u64::from(size))));
        }
        self.payload.resize(size as usize, 0);
        self.source.fill(&mut self.payload)
    }

    /// The page that `next_page` gave last, as it lies compressed in the file: for
    /// `Encoder::copy`.
    pub fn payload(&self) -> Payload<'_> {
        Payload { packing: self.packing, bytes: &self.payload }
    }

    /// Reads what is left, checks everything, and expects the reader to end there.
    pub fn finish(self) -> Result<Trailer, LtxError> {
        self.finish_with_index().map(|(trailer, _)| trailer)
    }

    /// As `finish`, and gives the index.
    pub fn finish_with_index(self) -> Result<(Trailer, Index), LtxError> {
        self.finish_with_size().map(|(trailer, index, _)| (trailer, index))
    }

    /// As `finish_with_index`, and gives the length of the file in bytes.
    pub fn finish_with_size(mut self) -> Result<(Trailer, Index, u64), LtxError> {
        let mut page = Vec::new();
        while self.next_page(&mut page)?.is_some() {}
        let Decoder { mut source, header, mut digest, index, rolling, .. } = self;
        let mut found = Vec::new();
        index.write(|expected| {
            found.resize(expected.len(), 0);
            source.fill(&mut found)?;
            digest.update(expected);
            if found == expected { Ok(()) } else { Err(source.damaged(Fault::Index)) }
        })?;
        let bytes = source.array::<TRAILER_LEN>()?;
        let trailer = Trailer::parse(&header, &bytes).map_err(|fault| source.damaged(fault))?;
        digest.update(bytes.first_chunk::<8>().unwrap_or(&[0; 8]));
        let (stored, computed) = (trailer.file_sum, file_sum(&digest));
        if stored != computed {
            return Err(source.damaged(Fault::FileSum { stored, computed }));
        }
        if let Some(post) = trailer.post.filter(|post| header.is_snapshot() && *post != rolling) {
            let fault = Fault::RollingSum { stored: post.get(), computed: rolling.get() };
            return Err(source.damaged(fault));
        }
        if !source.at_end()? {
            return Err(source.damaged(Fault::Trailing));
        }
        Ok((trailer, index, source.offset))
    }
}

/// How a frame with these flags is packed; `None` if there is no such frame.
fn packing(header: &Header, flags: u16) -> Option<Packing> {
    match (flags, header.codec.packing()) {
        (FLAG_SIZED, packing) => Some(packing),
        (0, Packing::Lz4Block) => Some(Packing::Lz4Frame),
        _ => None,
    }
}

/// Decodes single frames that were located by an `Index`. It cannot know the file's
/// checksum: compare the page's checksum with one that is known, if there is one.
pub struct FrameDecoder {
    header: Header,
    decompressor: Decompressor,
}

impl FrameDecoder {
    /// For frames of the file with this header.
    pub fn new(header: Header) -> FrameDecoder {
        FrameDecoder { header, decompressor: Decompressor::default() }
    }

    /// Decodes `frame`, exactly one frame, which must be of page `pgno`, into
    /// `page` (made as long as a page). What it gives is for `Encoder::copy`.
    ///
    /// # Errors
    /// `Damaged`, at an offset counted from the frame's begin.
    pub fn decode<'a>(
        &mut self,
        pgno: Pgno,
        frame: &'a [u8],
        page: &mut Vec<u8>,
    ) -> Result<Payload<'a>, LtxError> {
        page.resize(self.header.page_size.len(), 0);
        self.decode_into(pgno, frame, page)
    }

    /// As `decode`, into `page`, which must be as long as a page.
    ///
    /// # Errors
    /// As `decode`.
    pub fn decode_into<'a>(
        &mut self,
        pgno: Pgno,
        frame: &'a [u8],
        page: &mut [u8],
    ) -> Result<Payload<'a>, LtxError> {
        let damaged = |fault| LtxError::Damaged { offset: 0, fault };
        let Some((head, rest)) = frame.split_first_chunk::<LEGACY_FRAME_HEADER_LEN>() else {
            return Err(damaged(Fault::Truncated));
        };
        let [a, b, c, d, flags @ ..] = *head;
        let (number, flags) = (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes(flags));
        if number != pgno.get() {
            return Err(damaged(Fault::OtherPage(number, pgno)));
        }
        let packing = packing(&self.header, flags).ok_or_else(|| damaged(Fault::PageFlags(number, flags)))?;
        let bytes = if packing == Packing::Lz4Frame {
            rest
        } else {
            let (size, bytes) = rest.split_first_chunk().ok_or_else(|| damaged(Fault::Truncated))?;
            if u32::from_be_bytes(*size) as usize != bytes.len() {
                return Err(damaged(Fault::PayloadSize(number, u64::from(u32::from_be_bytes(*size)))));
            }
            bytes
        };
        if !self.decompressor.decompress(packing, bytes, page) {
            return Err(damaged(Fault::Payload(number)));
        }
        Ok(Payload { packing, bytes })
    }
}

const _: () = assert!(FRAME_HEADER_LEN == LEGACY_FRAME_HEADER_LEN + 4);
