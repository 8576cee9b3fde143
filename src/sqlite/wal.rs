//! The write-ahead log (file format §4): its header, its frames, and the committed
//! transactions in it.
//!
//! Two authorities say what is committed. The chain of checksums alone decides where
//! there is no wal-index (recovery, EXCLUSIVE mode). Where there is one, it decides:
//! SQLite 3.40.1 writes frames whose chain is broken after a spilled ROLLBACK TO, and
//! a writer that was killed leaves a commit frame that was never published.

use std::io;

use super::{ReadAt, be32};
use crate::words::{PageSize, Pgno};

/// The length of the header in bytes.
pub const HEADER_LEN: usize = 32;

/// The length of a frame's header in bytes; the page follows.
pub const FRAME_HEADER_LEN: usize = 24;

/// The last bit tells the byte order of the checksums.
const MAGIC: u32 = 0x377f_0682;

/// The only version there is (WAL_MAX_VERSION).
const VERSION: u32 = 3_007_000;

/// Read at once while scanning.
const CHUNK: usize = 128 * 1024;

/// The header of a WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// Whether the checksums are computed over big-endian words.
    pub big_endian: bool,
    /// The page size.
    pub page_size: PageSize,
    /// Counts checkpoints that restarted the WAL.
    pub checkpoint_seq: u32,
    /// What every valid frame repeats.
    pub salt: [u32; 2],
    /// The header's checksum, where the chain of the frames begins.
    pub sum: [u32; 2],
}

impl WalHeader {
    /// A header with its checksum.
    pub fn new(big_endian: bool, page_size: PageSize, checkpoint_seq: u32, salt: [u32; 2]) -> WalHeader {
        let mut header = WalHeader { big_endian, page_size, checkpoint_seq, salt, sum: [0, 0] };
        header.sum = header.compute_sum();
        header
    }

    /// The header of a WAL that begins with `bytes`; `None` if SQLite would take the
    /// WAL for empty.
    pub fn parse(bytes: &[u8]) -> Option<WalHeader> {
        let word = |at: usize| be32(bytes, at * 4);
        let magic = word(0)?;
        if magic & !1 != MAGIC || word(1)? != VERSION {
            return None;
        }
        let header = WalHeader {
            big_endian: magic & 1 == 1,
            page_size: PageSize::new(word(2)?).ok()?,
            checkpoint_seq: word(3)?,
            salt: [word(4)?, word(5)?],
            sum: [word(6)?, word(7)?],
        };
        (header.compute_sum() == header.sum).then_some(header)
    }

    /// The header of a WAL.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(wal: &(impl ReadAt + ?Sized)) -> io::Result<Option<WalHeader>> {
        let mut bytes = [0; HEADER_LEN];
        let len = wal.read_upto(&mut bytes, 0)?;
        Ok(bytes.get(..len).and_then(WalHeader::parse))
    }

    /// The bytes of the header.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let magic = MAGIC | u32::from(self.big_endian);
        let [salt_a, salt_b] = self.salt;
        let [sum_a, sum_b] = self.sum;
        let words = [magic, VERSION, self.page_size.get(), self.checkpoint_seq, salt_a, salt_b, sum_a, sum_b];
        let mut bytes = [0; HEADER_LEN];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    fn compute_sum(&self) -> [u32; 2] {
        checksum(self.big_endian, self.to_bytes().get(..24).unwrap_or_default(), [0, 0])
    }

    /// The length of a frame with its header.
    pub fn frame_len(&self) -> u64 {
        (FRAME_HEADER_LEN + self.page_size.len()) as u64
    }

    /// Where the `at`-th frame begins; frames count from 1.
    pub fn frame_offset(&self, at: u32) -> u64 {
        HEADER_LEN as u64 + u64::from(at.saturating_sub(1)) * self.frame_len()
    }

    /// Before the first frame.
    pub fn start(&self) -> Cursor {
        Cursor { frames: 0, sum: self.sum }
    }

    /// After frame `frames`, trusting the checksum that this frame itself states:
    /// so a chain that is broken before it does not matter. `None` if the file is
    /// shorter or the frame is not of this WAL.
    ///
    /// # Errors
    /// Those of reading.
    pub fn after(&self, wal: &(impl ReadAt + ?Sized), frames: u32) -> io::Result<Option<Cursor>> {
        if frames == 0 {
            return Ok(Some(self.start()));
        }
        let mut bytes = [0; FRAME_HEADER_LEN];
        let len = wal.read_upto(&mut bytes, self.frame_offset(frames))?;
        let frame = bytes.get(..len).and_then(FrameHeader::parse).filter(|frame| frame.salt == self.salt);
        Ok(frame.map(|frame| Cursor { frames, sum: frame.sum }))
    }

    /// Appends a frame to `frames`, bytes that follow `cursor` in the file, and moves
    /// the cursor. `commit` is the size of the database in pages if this is the last
    /// frame of a transaction, else 0. `page` must be one page.
    pub fn append_frame(
        &self,
        frames: &mut Vec<u8>,
        cursor: &mut Cursor,
        (pgno, commit): (Pgno, u32),
        page: &[u8],
    ) {
        let start = frames.len();
        frames.extend_from_slice(&pgno.get().to_be_bytes());
        frames.extend_from_slice(&commit.to_be_bytes());
        let sum = checksum(self.big_endian, frames.get(start..).unwrap_or_default(), cursor.sum);
        cursor.sum = checksum(self.big_endian, page, sum);
        cursor.frames = cursor.frames.saturating_add(1);
        for word in self.salt.into_iter().chain(cursor.sum) {
            frames.extend_from_slice(&word.to_be_bytes());
        }
        frames.extend_from_slice(page);
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The page that follows.
    pub pgno: Pgno,
    /// In the last frame of a transaction the size of the database in pages, else 0.
    pub commit: u32,
    /// The salts of the WAL that it belongs to.
    pub salt: [u32; 2],
    /// The checksum of everything up to and with this frame.
    pub sum: [u32; 2],
}

impl FrameHeader {
    /// The header of a frame that begins with `bytes`; `None` if they are too few or
    /// it is of page 0.
    pub fn parse(bytes: &[u8]) -> Option<FrameHeader> {
        let word = |at: usize| be32(bytes, at * 4);
        Some(FrameHeader {
            pgno: Pgno::new(word(0)?)?,
            commit: word(1)?,
            salt: [word(2)?, word(3)?],
            sum: [word(4)?, word(5)?],
        })
    }
}

/// A place between two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// How many frames lie before it.
    pub frames: u32,
    /// The chain's checksum there.
    pub sum: [u32; 2],
}

/// Who says what is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// The chain of checksums: a transaction counts if each of its frames is valid.
    Chain,
    /// The wal-index: exactly so many frames are committed, whatever their checksums.
    Index(u32),
}

/// A committed transaction in a WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The size of the database afterwards, in pages.
    pub commit: u32,
    /// Each page that it changed and that still exists afterwards, ascending, with
    /// the offset of its newest content in the WAL.
    pub pages: Vec<(Pgno, u64)>,
    /// The place after its last frame.
    pub end: Cursor,
    /// Whether the chain of checksums is broken in it (only the wal-index may say
    /// that it is committed nonetheless).
    pub broken: bool,
}

/// A WAL that could not be scanned.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// It could not be read.
    #[error("reading the wal at byte {offset} failed: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The wal-index says that a frame is committed which is not there.
    #[error("the wal-index says that {committed} frames are committed, but frame {frame} {what}")]
    Contradiction {
        /// What the wal-index says.
        committed: u32,
        /// The frame.
        frame: u32,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// The next transaction after `from`; `None` if there is no further committed one.
/// Memory: 16 bytes a frame of the transaction.
///
/// # Errors
/// `Read`; `Contradiction` only under `Authority::Index`.
pub fn next_transaction(
    wal: &(impl ReadAt + ?Sized),
    header: &WalHeader,
    from: Cursor,
    authority: Authority,
) -> Result<Option<Transaction>, WalError> {
    Frames::new(wal, header, Vec::new()).next(from, authority)
}

/// Each page once, with its last offset, ascending, none beyond the end.
fn newest(mut pages: Vec<(Pgno, u64)>, commit: u32) -> Vec<(Pgno, u64)> {
    pages.retain(|(pgno, _)| pgno.get() <= commit);
    pages.sort_unstable_by_key(|(pgno, offset)| (*pgno, std::cmp::Reverse(*offset)));
    pages.dedup_by_key(|(pgno, _)| *pgno);
    pages
}

/// The checksum after a frame.
fn chain(header: &WalHeader, frame: &[u8], from: [u32; 2]) -> [u32; 2] {
    let (head, page) = frame.split_at_checked(FRAME_HEADER_LEN).unwrap_or_default();
    let sum = checksum(header.big_endian, head.get(..8).unwrap_or_default(), from);
    checksum(header.big_endian, page, sum)
}

/// Reads frames one after the other in large pieces, and keeps the last piece, so that
/// the pages of a transaction that was just found need not be read again.
pub struct Frames<'a, R: ?Sized> {
    wal: &'a R,
    header: &'a WalHeader,
    /// Its first `filled` bytes are those of the file from `at` on.
    buffer: Vec<u8>,
    filled: usize,
    at: u64,
}

impl<'a, R: ReadAt + ?Sized> Frames<'a, R> {
    /// Reads from `wal` through `buffer`, whose memory is used again.
    pub fn new(wal: &'a R, header: &'a WalHeader, buffer: Vec<u8>) -> Frames<'a, R> {
        Frames { wal, header, buffer, filled: 0, at: 0 }
    }

    /// The WAL's header.
    pub fn header(&self) -> &WalHeader {
        self.header
    }

    /// The buffer, for the next use.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// As [`next_transaction`]. Nothing before an earlier `from` is to be asked for.
    ///
    /// # Errors
    /// `Read`; `Contradiction` only under `Authority::Index`.
    pub fn next(&mut self, from: Cursor, authority: Authority) -> Result<Option<Transaction>, WalError> {
        let header = self.header;
        let mut cursor = from;
        let (mut pages, mut broken) = (Vec::new(), false);
        loop {
            let Some(frame) = cursor.frames.checked_add(1) else { return Ok(None) };
            let ahead = match authority {
                // The last committed frame ends a transaction.
                Authority::Index(committed) if frame > committed && pages.is_empty() => return Ok(None),
                Authority::Index(committed) if frame > committed => {
                    let what = "ends no transaction";
                    return Err(WalError::Contradiction { committed, frame: committed, what });
                }
                Authority::Index(committed) => Some(committed - frame + 1),
                Authority::Chain => None,
            };
            let offset = header.frame_offset(frame);
            let found = self.frame(offset, ahead)?;
            let found = match (found.filter(|(head, _)| head.salt == header.salt), authority) {
                (Some(found), _) => found,
                (None, Authority::Chain) => return Ok(None),
                (None, Authority::Index(committed)) => {
                    let what = "is missing or belongs to an earlier wal";
                    return Err(WalError::Contradiction { committed, frame, what });
                }
            };
            let (head, sum) = (found.0, chain(header, found.1, cursor.sum));
            if sum != head.sum {
                if authority == Authority::Chain {
                    return Ok(None);
                }
                broken = true;
            }
            cursor = Cursor { frames: frame, sum: head.sum };
            pages.push((head.pgno, offset + FRAME_HEADER_LEN as u64));
            if head.commit != 0 {
                let pages = newest(pages, head.commit);
                return Ok(Some(Transaction { commit: head.commit, pages, end: cursor, broken }));
            }
        }
    }

    /// The page at `offset`, if it is among what was read last.
    pub fn page(&self, offset: u64) -> Option<&[u8]> {
        let from = usize::try_from(offset.checked_sub(self.at)?).ok()?;
        let filled = self.buffer.get(..self.filled)?;
        filled.get(from..)?.get(..self.header.page_size.len())
    }

    /// The frame at `offset`, not before the one asked for last; `None` if the file
    /// ends in it or it is none. `ahead` frames, if that is known, are wanted from here.
    fn frame(&mut self, offset: u64, ahead: Option<u32>) -> Result<Option<(FrameHeader, &[u8])>, WalError> {
        let len = usize::try_from(self.header.frame_len()).unwrap_or(usize::MAX);
        let inside = |at: u64| usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX);
        if inside(self.at).saturating_add(len) > self.filled {
            // Unknown: one frame at first, then twice as many each time, since most
            // transactions are small, and what lies behind them is read for nothing.
            let most = (CHUNK / len * len).max(len);
            let want = match ahead {
                Some(frames) => len.saturating_mul(usize::try_from(frames).unwrap_or(usize::MAX)),
                None => (self.filled * 2) / len * len,
            };
            let want = want.clamp(len, most);
            if self.buffer.len() < want {
                self.buffer.resize(want, 0);
            }
            (self.at, self.filled) = (offset, 0);
            let into = self.buffer.get_mut(..want).unwrap_or_default();
            let read = self.wal.read_upto(into, offset);
            self.filled = read.map_err(|source| WalError::Read { offset, source })?;
        }
        let from = inside(self.at);
        let frame = self.buffer.get(from..self.filled).and_then(|rest| rest.get(..len));
        Ok(frame.and_then(|frame| Some((FrameHeader::parse(frame)?, frame))))
    }
}

/// The checksum of WAL and wal-index (file format §4.2): over pairs of words; what is
/// left of the last pair does not count.
pub fn checksum(big_endian: bool, bytes: &[u8], from: [u32; 2]) -> [u32; 2] {
    // The branch is outside the loop: a WAL in the machine's order costs no swaps.
    if big_endian {
        sum_words(bytes, from, u32::from_be_bytes)
    } else {
        sum_words(bytes, from, u32::from_le_bytes)
    }
}

/// The checksum in the machine's byte order, as in the wal-index.
pub(super) fn checksum_native(bytes: &[u8], from: [u32; 2]) -> [u32; 2] {
    sum_words(bytes, from, u32::from_ne_bytes)
}

fn sum_words(bytes: &[u8], [mut a, mut b]: [u32; 2], word: impl Fn([u8; 4]) -> u32) -> [u32; 2] {
    for pair in bytes.chunks_exact(8) {
        let &[p, q, r, s, t, u, v, w] = pair else { continue };
        a = a.wrapping_add(word([p, q, r, s])).wrapping_add(b);
        b = b.wrapping_add(word([t, u, v, w])).wrapping_add(a);
    }
    [a, b]
}
