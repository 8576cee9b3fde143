//! A native writer of a WAL, as SQLite's own is (wal.c): frames, then hash tables, then
//! the wal-index's header, its second copy first. Its reader is whoever has the database
//! open; nobody else may write: the caller holds WAL_WRITE. The wal-index is written,
//! never mapped. Must not know databases or positions.

use std::io;

use super::super::{LockTo, OwnFile};
use super::locks::WAL_READERS;
use crate::sqlite::wal::{Cursor, FRAME_HEADER_LEN, FrameHeader, WalHeader};
use crate::sqlite::wal_index::{self, WalIndex, at};
use crate::sqlite::wal_tables::{BLOCK, Tables};
use crate::words::{PageSize, Pgno};

/// A read mark that no reader may use (READMARK_NOT_USED).
pub(super) const UNUSED: u32 = u32::MAX;

/// Frames are written in pieces of about this many bytes.
const PIECE: usize = 1 << 20;

/// The checksums of a WAL that this machine begins are in its own byte order.
const BIG_ENDIAN: bool = cfg!(target_endian = "big");

/// The writer of one WAL.
pub(super) struct Writer {
    wal: Box<dyn OwnFile>,
    pub(super) shm: Box<dyn OwnFile>,
    /// The generation in the file; `None` where the next frame begins one.
    header: Option<WalHeader>,
    /// Of the generation that the next frame begins.
    next: (u32, [u32; 2]),
    /// What is published.
    pub(super) index: WalIndex,
    /// The end of what is written; published or not.
    end: Cursor,
    pub(super) tables: Tables,
}

/// A wal-index that says that the WAL is empty.
pub(super) fn empty(page_size: PageSize) -> WalIndex {
    WalIndex {
        change: 1,
        big_endian: BIG_ENDIAN,
        page_size,
        frames: 0,
        pages: 0,
        frame_sum: [0, 0],
        salt: [0, 0],
        backfilled: 0,
        backfill_attempted: 0,
        read_marks: [0, UNUSED, UNUSED, UNUSED, UNUSED],
    }
}

impl Writer {
    /// Makes the wal-index of a WAL whose first frames hold `pages`, up to `end`, and
    /// with them a database of `size` pages. The caller holds every lock of the
    /// wal-index. `header` is `None` for a WAL without a generation.
    pub fn make(
        (wal, shm): (Box<dyn OwnFile>, Box<dyn OwnFile>),
        page_size: PageSize,
        generation: Option<(WalHeader, Cursor, u32)>,
        pages: &[Pgno],
    ) -> io::Result<Writer> {
        let mut index = empty(page_size);
        if let Some((header, end, size)) = generation {
            index.big_endian = header.big_endian;
            (index.frames, index.frame_sum, index.salt) = (end.frames, end.sum, header.salt);
            index.pages = if end.frames > 0 { size } else { 0 };
            index.backfill_attempted = end.frames;
            if end.frames > 0 {
                index.read_marks[1] = end.frames;
            }
        }
        let mut head = index.to_bytes().to_vec();
        head.resize(BLOCK, 0);
        shm.write(vec![(0, head)])?;
        let header = generation.map(|(header, ..)| header);
        let mut writer = Writer::new((wal, shm), index, header)?;
        pages.iter().for_each(|pgno| writer.tables.push(*pgno));
        writer.shm.write(writer.tables.take_changes())?;
        Ok(writer)
    }

    /// Goes on where the wal-index stands, which others use.
    pub fn take_over(
        (wal, shm): (Box<dyn OwnFile>, Box<dyn OwnFile>),
        index: WalIndex,
        header: Option<WalHeader>,
        pages: &[Pgno],
    ) -> io::Result<Writer> {
        let mut writer = Writer::new((wal, shm), index, header)?;
        pages.iter().for_each(|pgno| writer.tables.push(*pgno));
        // A writer that died may have left entries behind the published ones; what
        // readers use is the same already.
        for (offset, bytes) in writer.tables.take_changes() {
            if writer.shm.read(offset, bytes.len())? != bytes {
                writer.shm.write(vec![(offset, bytes)])?;
            }
        }
        Ok(writer)
    }

    fn new(
        (wal, shm): (Box<dyn OwnFile>, Box<dyn OwnFile>),
        index: WalIndex,
        header: Option<WalHeader>,
    ) -> io::Result<Writer> {
        // A wal-index of a generation that has no frame yet, whose header is not in the
        // file.
        let begun = header.filter(|header| header.salt == index.salt);
        let seq = header.map_or(0, |header| header.checkpoint_seq.wrapping_add(1));
        let salt = if begun.is_none() && index.salt != [0, 0] { index.salt } else { [random()?, random()?] };
        let end = match begun {
            Some(_) if index.frames > 0 => Cursor { frames: index.frames, sum: index.frame_sum },
            Some(header) => header.start(),
            None => Cursor { frames: 0, sum: [0, 0] },
        };
        Ok(Writer { wal, shm, header: begun, next: (seq, salt), index, end, tables: Tables::default() })
    }

    /// How many frames are published.
    pub fn frames(&self) -> u32 {
        self.index.frames
    }

    /// The generation that the next frame will be of.
    pub fn generation(&self) -> WalHeader {
        let (seq, salt) = self.next;
        let new = || WalHeader::new(BIG_ENDIAN, self.index.page_size, seq, salt);
        self.header.unwrap_or_else(new)
    }

    /// The end of what is written.
    pub fn end(&self) -> Cursor {
        self.end
    }

    /// Begins a new generation if the database has every frame and no reader uses the
    /// WAL (walRestartLog); else the WAL grows.
    pub fn restart(&mut self) -> io::Result<()> {
        let settled = self.index.frames > 0 && self.end.frames == self.index.frames;
        let Some(header) = self.header.filter(|_| settled) else { return Ok(()) };
        let backfilled = self.shm.read(at::BACKFILLED, 4)?;
        if backfilled != self.index.frames.to_ne_bytes()
            || !self.shm.try_lock(LockTo::Exclusive, WAL_READERS)?
        {
            return Ok(());
        }
        let salt = [header.salt[0].wrapping_add(1), random()?];
        let index = WalIndex { change: self.index.change.wrapping_add(1), frames: 0, salt, ..self.index };
        let marks = [0, 0, UNUSED, UNUSED, UNUSED];
        let counts = [0].into_iter().chain(marks).flat_map(u32::to_ne_bytes).collect();
        let mut writes = header_writes(&index);
        writes.extend([(at::BACKFILLED, counts), (at::BACKFILL_ATTEMPTED, vec![0; 4])]);
        let written = self.shm.write(writes);
        self.shm.try_lock(LockTo::Free, WAL_READERS)?;
        written?;
        self.index = index;
        self.next = (header.checkpoint_seq.wrapping_add(1), salt);
        self.header = None;
        self.tables = Tables::default();
        self.end = Cursor { frames: 0, sum: [0, 0] };
        Ok(())
    }

    /// Writes the frames of a transaction, which leaves `commit` pages; nobody sees
    /// them yet. `read` fills in the content of a page.
    pub fn append<E: From<io::Error>>(
        &mut self,
        pages: &[Pgno],
        commit: u32,
        mut read: impl FnMut(Pgno, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let before = self.end;
        let written = self.write_frames(pages, commit, &mut read);
        if written.is_err() {
            self.take_back(before);
        }
        written
    }

    fn write_frames<E: From<io::Error>>(
        &mut self,
        pages: &[Pgno],
        commit: u32,
        read: &mut impl FnMut(Pgno, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let header = self.generation();
        if self.header.is_none() {
            self.wal.write(vec![(0, header.to_bytes().to_vec())])?;
            self.header = Some(header);
            self.end = header.start();
        }
        let mut page = vec![0; header.page_size.len()];
        let mut piece = Vec::new();
        let mut offset = header.frame_offset(self.end.frames + 1);
        for (number, pgno) in pages.iter().enumerate() {
            read(*pgno, &mut page)?;
            let commit = if number + 1 == pages.len() { commit } else { 0 };
            header.append_frame(&mut piece, &mut self.end, (*pgno, commit), &page);
            self.tables.push(*pgno);
            if piece.len() >= PIECE {
                let len = piece.len() as u64;
                self.wal.write(vec![(offset, std::mem::take(&mut piece))])?;
                offset += len;
            }
        }
        self.wal.write(vec![(offset, piece)])?;
        Ok(self.shm.write(self.tables.take_changes())?)
    }

    /// Takes frames for its own that another writer left after the published ones. `pages`
    /// are theirs, `headers` are to be written over those in the file.
    pub fn adopt(
        &mut self,
        header: WalHeader,
        pages: &[Pgno],
        headers: Vec<(u64, Vec<u8>)>,
    ) -> io::Result<()> {
        self.wal.write(headers)?;
        self.header = Some(header);
        pages.iter().for_each(|pgno| self.tables.push(*pgno));
        let frames = self.tables.frames();
        let last = self.wal.read(header.frame_offset(frames), FRAME_HEADER_LEN)?;
        let sum = FrameHeader::parse(&last).ok_or(io::ErrorKind::UnexpectedEof)?.sum;
        self.end = Cursor { frames, sum };
        self.shm.write(self.tables.take_changes())
    }

    /// Takes back what was written after `end` and not published.
    pub fn take_back(&mut self, end: Cursor) {
        self.end = end;
        self.tables.truncate(end.frames);
        self.tables.forget_written();
        let Some(header) = self.header else { return };
        if end.frames == 0 {
            self.end = header.start();
        }
        // A commit frame that nobody published would count in a recovery.
        let next = header.frame_offset(end.frames + 1);
        if let Err(error) = self.wal.write(vec![(next, vec![0; crate::sqlite::wal::FRAME_HEADER_LEN])]) {
            tracing::warn!(%error, "frames that were not published stay in a wal");
        }
    }

    /// Lets readers see what was written; the database then has `pages` pages.
    pub fn publish(&mut self, pages: u32) -> io::Result<()> {
        let header = self.generation();
        self.index = WalIndex {
            change: self.index.change.wrapping_add(1),
            big_endian: header.big_endian,
            frames: self.end.frames,
            pages,
            frame_sum: self.end.sum,
            salt: header.salt,
            ..self.index
        };
        self.shm.write(header_writes(&self.index))
    }

    /// The database's size with the published frames, where there are any.
    pub fn pages(&self) -> u32 {
        self.index.pages
    }

    /// What the wal-index says of checkpoints and readers now.
    pub fn marks(&self) -> io::Result<WalIndex> {
        let bytes = self.shm.read(0, wal_index::LEN)?;
        WalIndex::parse(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Second copy first: a reader takes the first one for valid only if both are the same.
fn header_writes(index: &WalIndex) -> Vec<(u64, Vec<u8>)> {
    let copy = index.to_copy().to_vec();
    vec![(copy.len() as u64, copy.clone()), (0, copy)]
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests;
