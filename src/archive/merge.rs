//! Merging change sets into one: of each page the newest. Pages are copied as they
//! lie compressed where the codec is the same. Must not decide what is merged.

use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};

use super::Archive;
use super::change::Change;
use super::error::ArchiveError;
use super::plan::Plan;
use super::read::{Data, Decoders, Ltx};
use super::restore::{Select, frame};
use super::sink::{Progress, Watch};
use super::spool::{SpoolWriter, Spooled};
use crate::ltx::{Codec, Encoder, Form, Header};
use crate::words::{Pgno, Pos, Timestamp};

/// So much of a remote object is fetched at once. One of each input is held.
const CHUNK: u64 = 1 << 20;

/// A merged change set.
#[derive(Debug)]
pub struct Merged {
    /// Its LTX.
    pub file: Spooled,
    /// What it does.
    pub change: Change,
}

/// An input of a merge.
struct Input<'a> {
    archive: &'a Archive,
    ltx: Ltx,
    /// Of a remote one: what was fetched and is still needed, and from where on.
    window: BytesMut,
    at: u64,
    digest: Digest,
}

impl Archive {
    /// Merges what a plan reads into one LTX from its base (or from nothing: a
    /// snapshot) to its position.
    ///
    /// # Errors
    /// As `restore`, and the local disk's.
    pub fn merge(&self, plan: &Plan, watch: &dyn Watch) -> Result<Merged, ArchiveError> {
        let codec = self.options.codec;
        let pre = plan.base.unwrap_or(Pos::ZERO);
        let mut select = Select::new(plan);
        let (mut inputs, mut frames) = (Vec::new(), Vec::new());
        self.load_newest_first(&plan.steps, |ltx| {
            select.fits(&ltx)?;
            let at = inputs.len();
            let before = frames.len();
            frames.extend(ltx.index.iter().filter(|frame| select.take(frame.0)).map(|frame| (frame, at)));
            let goes_on = select.goes_on(&ltx);
            let is_used = frames.len() > before || matches!(ltx.data, Data::Remote { .. });
            if is_used {
                inputs.push(Input::new(self, ltx));
            }
            Ok(goes_on)
        })?;
        frames.sort_unstable_by_key(|((pgno, ..), _)| *pgno);
        let header = header(plan, pre, codec);
        let spool = SpoolWriter::create(self)?;
        let named = ArchiveError::ltx;
        let what = format!("(merging {})", plan.db);
        let mut encoder = Encoder::new(spool, header).map_err(named(&what))?;
        let mut page = Vec::new();
        let mut decoders = Decoders::default();
        for (done, ((pgno, offset, len), at)) in frames.iter().enumerate() {
            go_on(watch, done, frames.len())?;
            let Some(input) = inputs.get_mut(*at) else { continue };
            let bytes = input.frame(*offset, *len)?;
            let decoder = decoders.of(&input.ltx.header);
            let payload = decoder.decode(*pgno, &bytes, &mut page).map_err(named(&input.ltx.key))?;
            encoder.copy(*pgno, &page, payload).map_err(named(&what))?;
        }
        for input in inputs {
            input.finish()?;
        }
        let pages = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        let finished = encoder.finish(plan.pos.checksum).map_err(named(&what))?;
        let change = Change {
            pre,
            post: plan.pos,
            page_size: plan.page_size,
            commit: plan.commit,
            pages,
            timestamp: plan.timestamp,
        };
        Ok(Merged { file: finished.writer.finish()?, change })
    }

    /// Writes a whole database as one LTX: a snapshot. `read` gives each page.
    ///
    /// # Errors
    /// `Checksum`-like damage if the pages are not those of `pos`.
    pub(super) fn encode_snapshot(
        &self,
        plan: &Plan,
        watch: &dyn Watch,
        mut read: impl FnMut(Pgno, &mut [u8]) -> std::io::Result<()>,
    ) -> Result<Merged, ArchiveError> {
        let what = format!("(snapshot of {})", plan.db);
        let named = ArchiveError::ltx;
        let spool = SpoolWriter::create(self)?;
        let header = header(plan, Pos::ZERO, self.options.codec);
        let mut encoder = Encoder::new(spool, header).map_err(named(&what))?;
        let mut page = vec![0; plan.page_size.len()];
        let mut pages = 0;
        for pgno in Pgno::up_to(plan.commit).filter(|pgno| *pgno != plan.page_size.lock_page()) {
            go_on(watch, pages as usize, plan.commit as usize)?;
            let attempt = format!("reading page {pgno} of database {} for its snapshot", plan.db);
            read(pgno, &mut page).map_err(ArchiveError::local(attempt))?;
            encoder.page(pgno, &page).map_err(named(&what))?;
            pages += 1;
        }
        let found = encoder.rolling();
        if found != plan.pos.checksum {
            let (db, txid, expected) = (plan.db.clone(), plan.pos.txid, plan.pos.checksum);
            return Err(ArchiveError::Checksum { db, txid, expected, found });
        }
        let finished = encoder.finish(plan.pos.checksum).map_err(named(&what))?;
        let change = Change {
            pre: Pos::ZERO,
            post: plan.pos,
            page_size: plan.page_size,
            commit: plan.commit,
            pages,
            timestamp: plan.timestamp,
        };
        Ok(Merged { file: finished.writer.finish()?, change })
    }
}

/// Asks now and then whether to go on.
fn go_on(watch: &dyn Watch, done: usize, total: usize) -> Result<(), ArchiveError> {
    let progress = Progress { pages: done as u64, total: total as u64, bytes: 0 };
    if !done.is_multiple_of(256) || watch.progress(progress) { Ok(()) } else { Err(ArchiveError::Cancelled) }
}

/// Nothing of a node or a moment of writing is in it: two nodes that merge the same
/// make the same bytes.
fn header(plan: &Plan, pre: Pos, codec: Codec) -> Header {
    let Plan { pos, page_size, commit, timestamp, .. } = *plan;
    let timestamp: Timestamp = timestamp;
    let carried = codec == Codec::Lz4 && commit > 0;
    Header {
        page_size,
        commit,
        min: pre.txid.next(),
        max: pos.txid,
        timestamp,
        pre: pre.checksum,
        wal: None,
        node: 0,
        form: if carried { Form::NoChecksum { post: pos.checksum } } else { Form::Tracked },
        codec,
    }
}

impl<'a> Input<'a> {
    fn new(archive: &'a Archive, ltx: Ltx) -> Input<'a> {
        let digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        Input { archive, ltx, window: BytesMut::new(), at: 0, digest }
    }

    /// The frame at `offset`; frames are asked for in ascending order.
    fn frame(&mut self, offset: u64, len: u64) -> Result<Bytes, ArchiveError> {
        let ends_early = || ArchiveError::damaged(&self.ltx.key, "it ends before its end");
        if let Data::Memory(bytes) = &self.ltx.data {
            let slice = frame(bytes, offset, len).ok_or_else(ends_early)?;
            return Ok(bytes.slice_ref(slice));
        }
        while self.at + (self.window.len() as u64) < offset + len {
            self.discard(offset);
            self.fetch()?;
        }
        self.discard(offset);
        let len = usize::try_from(len).ok().filter(|len| *len <= self.window.len());
        let len = len.ok_or_else(|| ArchiveError::damaged(&self.ltx.key, "it ends before its end"))?;
        self.at += len as u64;
        Ok(self.window.split_to(len).freeze())
    }

    /// What lies before `offset` is not needed any more.
    fn discard(&mut self, offset: u64) {
        let skip = usize::try_from(offset.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let skip = skip.min(self.window.len());
        drop(self.window.split_to(skip));
        self.at += skip as u64;
    }

    fn fetch(&mut self) -> Result<(), ArchiveError> {
        let Data::Remote { size, .. } = self.ltx.data else { return Ok(()) };
        let from = self.at + self.window.len() as u64;
        let bytes =
            self.archive.store().get_range(&self.ltx.key, from, CHUNK.min(size.saturating_sub(from)))?;
        if bytes.is_empty() {
            return Err(ArchiveError::damaged(&self.ltx.key, format!("it has {from} bytes, not {size}")));
        }
        self.digest.update(&bytes);
        self.window.extend_from_slice(&bytes);
        Ok(())
    }

    /// A remote object is read to its end, if its checksum is known.
    fn finish(mut self) -> Result<(), ArchiveError> {
        let Data::Remote { size, sum: Some(sum) } = self.ltx.data else { return Ok(()) };
        self.discard(u64::MAX);
        while self.at < size {
            self.fetch()?;
            self.discard(u64::MAX);
        }
        if self.digest.finalize() == sum {
            return Ok(());
        }
        Err(ArchiveError::damaged(&self.ltx.key, "its checksum is wrong"))
    }
}
