//! The files of the log: appending, rotation, spills, removal. Must not decide what
//! may be removed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crc_fast::{CrcAlgorithm, Digest};

use super::reader::LogReader;
use super::record::Batch;
use super::scan::Scanned;
use super::stored::{StoredChange, read_stored};
use super::sync::Durable;
use super::{LogError, Place};
use crate::words::{Faults, start_writing};

/// So many bytes of zeros at once.
const ROOM: u64 = 512 << 10;

/// The disk is told to begin with so many bytes, so that an fsync finds little to do.
const START_AT: u64 = 1 << 20;

/// How the log behaves.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// A file that has reached this size is left for the next, in bytes.
    pub rotate_at: u64,
    /// Fail points: `log.append`, `log.sync`.
    pub faults: Faults,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { rotate_at: 64 << 20, faults: Faults::none() }
    }
}

/// The change log of one node.
#[derive(Debug)]
pub struct ChangeLog {
    dir: PathBuf,
    options: LogOptions,
    writer: Mutex<Writer>,
    durable: Durable,
}

#[derive(Debug)]
struct Writer {
    file: Arc<File>,
    number: u64,
    len: u64,
    /// Up to here the file has been written, beyond `len` with zeros.
    zeroed: u64,
    /// Up to here the disk was told to begin.
    started: u64,
    /// Files kept open for reading, the one in use among them.
    files: BTreeMap<u64, u64>,
    next_spill: u64,
}

impl ChangeLog {
    /// Opens the log in `dir` (created if missing), reads what it holds, and cuts
    /// off a torn end. Bodies of records from file `verify_from` on are checked.
    pub fn open(dir: &Path, options: LogOptions, verify_from: u64) -> Result<(ChangeLog, Scanned), LogError> {
        fs::create_dir_all(dir).map_err(LogError::io("create the directory of", dir))?;
        let scanned = Scanned::read(dir, verify_from)?;
        let number = scanned.files.keys().next_back().copied().unwrap_or(1);
        let len = scanned.end;
        let path = file_path(dir, number);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(LogError::io("open", &path))?;
        file.set_len(len).map_err(LogError::io("cut the torn end of", &path))?;
        file.sync_all().map_err(LogError::io("sync", &path))?;
        sync_dir(dir)?;
        let mut files = scanned.files.clone();
        files.insert(number, len);
        let writer = Writer {
            file: Arc::new(file),
            number,
            len,
            zeroed: len,
            started: len,
            files,
            next_spill: scanned.next_spill,
        };
        let log = ChangeLog {
            dir: dir.to_owned(),
            options,
            writer: Mutex::new(writer),
            durable: Durable::default(),
        };
        log.durable.reached(Place { file: number, offset: len });
        Ok((log, scanned))
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends the batch's records; not durable before `sync`. Returns their places.
    /// On an error nothing was appended.
    pub fn append(&self, batch: &Batch) -> Result<Vec<Place>, LogError> {
        let mut writer = self.writer();
        let path = file_path(&self.dir, writer.number);
        self.options.faults.pass("log.append").map_err(LogError::io("append to", &path))?;
        if writer.len >= self.options.rotate_at {
            self.rotate(&mut writer)?;
        }
        let start = writer.len;
        if let Err(error) = writer.file.write_all_at(&batch.bytes, start) {
            // What was written in part would be a torn record in the middle.
            let _ = writer.file.set_len(start);
            writer.zeroed = start;
            return Err(LogError::io("append to", file_path(&self.dir, writer.number))(error));
        }
        writer.len += batch.bytes.len() as u64;
        writer.zeroed = writer.zeroed.max(writer.len);
        let (number, len) = (writer.number, writer.len);
        writer.files.insert(number, len);
        if len - writer.started >= START_AT {
            writer.start();
        }
        Ok(batch.starts.iter().map(|at| Place { file: number, offset: start + *at as u64 }).collect())
    }

    fn rotate(&self, writer: &mut Writer) -> Result<(), LogError> {
        let old = file_path(&self.dir, writer.number);
        // In a file that is not the last, zeros after the records would be damage.
        writer.file.set_len(writer.len).map_err(LogError::io("cut", &old))?;
        // A record that is torn in a file that is not the last is damage: only the last may
        // not be durable. The disk was told of it long ago (`start`).
        let end = Place { file: writer.number, offset: writer.len };
        self.durable.sync(&writer.file, end).map_err(LogError::io("sync", &old))?;
        let number = writer.number + 1;
        let path = file_path(&self.dir, number);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(LogError::io("create", &path))?;
        sync_dir(&self.dir)?;
        writer.file = Arc::new(file);
        writer.number = number;
        (writer.len, writer.zeroed, writer.started) = (0, 0, 0);
        writer.files.insert(number, 0);
        Ok(())
    }

    /// Where the next record will be, at the earliest.
    pub fn end(&self) -> Place {
        let writer = self.writer();
        Place { file: writer.number, offset: writer.len }
    }

    /// Returns once everything that was appended before the call is durable.
    pub fn sync(&self) -> Result<(), LogError> {
        let upto = self.make_room();
        let path = file_path(&self.dir, upto.file);
        self.options.faults.pass("log.sync").map_err(LogError::io("sync", &path))?;
        self.durable.wait(upto, || self.writer().current()).map_err(LogError::io("sync", path))
    }

    /// Has the disk begin with what was appended.
    pub fn start_sync(&self) {
        self.writer().start();
    }

    /// Writes zeros after the end where there are few, and gives the end. An fsync of
    /// records that replace them writes no inode: 160 µs in place of 250 µs. Only who
    /// syncs pays for it.
    fn make_room(&self) -> Place {
        let mut writer = self.writer();
        let end = Place { file: writer.number, offset: writer.len };
        if writer.zeroed < writer.len + ROOM / 8 && writer.len < self.options.rotate_at {
            let zeros = vec![0; ROOM as usize];
            // On a full disk there will be none; the next append tells.
            match writer.file.write_all_at(&zeros, writer.zeroed) {
                Ok(()) => writer.zeroed += ROOM,
                Err(_) => {
                    let _ = writer.file.set_len(writer.len);
                    writer.zeroed = writer.len;
                }
            }
        }
        end
    }

    /// A change set, to read its pages from.
    pub fn read(&self, place: Place) -> Result<StoredChange, LogError> {
        read_stored(&self.dir, place)
    }

    /// A reader that begins at `from`, the beginning of a record or of a file.
    pub fn reader(&self, from: Place) -> LogReader {
        LogReader::new(&self.dir, from)
    }

    /// Bytes of all files, without spills.
    pub fn size(&self) -> u64 {
        self.writer().files.values().sum()
    }

    /// The files before `keep_from` are removed, with the spills that only they need.
    pub fn remove_before(&self, keep_from: u64) -> Result<(), LogError> {
        let old: Vec<u64> = {
            let mut writer = self.writer();
            let old: Vec<u64> =
                writer.files.keys().copied().filter(|n| *n < keep_from && *n != writer.number).collect();
            for number in &old {
                writer.files.remove(number);
            }
            old
        };
        for number in old {
            let path = file_path(&self.dir, number);
            for spill in super::scan::spills_of(&path, number)? {
                let spill = spill_path(&self.dir, spill);
                fs::remove_file(&spill)
                    .or_else(ignore_missing)
                    .map_err(LogError::io("remove from", &spill))?;
            }
            fs::remove_file(&path).or_else(ignore_missing).map_err(LogError::io("remove from", &path))?;
        }
        Ok(())
    }

    /// The numbers and sizes of the files, oldest first.
    pub fn files(&self) -> Vec<(u64, u64)> {
        self.writer().files.iter().map(|(number, len)| (*number, *len)).collect()
    }

    /// Begins a file for the pages of a change too large for a record.
    pub fn spill(&self) -> Result<SpillWriter, LogError> {
        let id = {
            let mut writer = self.writer();
            writer.next_spill += 1;
            writer.next_spill - 1
        };
        let path = spill_path(&self.dir, id);
        let file = File::create(&path).map_err(LogError::io("create", &path))?;
        Ok(SpillWriter {
            id,
            path,
            file: std::io::BufWriter::with_capacity(1 << 20, file),
            digest: Digest::new(CrcAlgorithm::Crc64GoIso),
            kept: false,
        })
    }
}

impl Writer {
    /// Has the disk begin with what it has not been told of yet.
    fn start(&mut self) {
        if self.len > self.started {
            start_writing(&self.file, self.started, self.len - self.started);
            self.started = self.len;
        }
    }

    /// The file that may not be durable, and its end.
    fn current(&self) -> (Arc<File>, Place) {
        (Arc::clone(&self.file), Place { file: self.number, offset: self.len })
    }
}

/// The pages of one large change, on their way to a file of their own. Removed on
/// drop unless finished.
pub struct SpillWriter {
    id: u64,
    path: PathBuf,
    file: std::io::BufWriter<File>,
    digest: Digest,
    kept: bool,
}

impl SpillWriter {
    /// Adds a page.
    pub fn page(&mut self, data: &[u8]) -> Result<(), LogError> {
        self.digest.update(data);
        self.file.write_all(data).map_err(LogError::io("write", &self.path))
    }

    /// Makes the file durable; its number and CRC go into the record.
    pub fn finish(mut self) -> Result<(u64, u64), LogError> {
        self.file.flush().map_err(LogError::io("write", &self.path))?;
        self.file.get_ref().sync_all().map_err(LogError::io("sync", &self.path))?;
        if let Some(dir) = self.path.parent() {
            sync_dir(dir)?;
        }
        self.kept = true;
        Ok((self.id, self.digest.finalize()))
    }
}

impl Drop for SpillWriter {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(LogError::io("sync the directory of", dir))
}

pub(super) fn file_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.log"))
}

pub(super) fn spill_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.spill"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{DbName, Pos};

    fn batch() -> Batch {
        let mut batch = Batch::new();
        batch.commit(&DbName::new("a.db").expect("a name"), Pos::ZERO);
        batch
    }

    fn len(path: &Path) -> u64 {
        fs::metadata(path).expect("stat").len()
    }

    #[test]
    fn zeros_after_the_last_record_are_no_damage_and_go_at_the_next_open() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = file_path(dir.path(), 1);
        let (log, _) = ChangeLog::open(dir.path(), LogOptions::default(), 0).expect("open");
        let places = log.append(&batch()).expect("append");
        log.sync().expect("sync");
        assert!(len(&path) >= ROOM);
        let second = log.append(&batch()).expect("append");
        let end = log.end();
        drop(log);
        let (log, scanned) = ChangeLog::open(dir.path(), LogOptions::default(), 0).expect("open");
        assert_eq!((log.end(), scanned.end), (end, end.offset));
        assert_eq!(len(&path), end.offset);
        assert!(places[0] < second[0]);
    }

    #[test]
    fn a_file_that_is_left_ends_with_its_last_record_and_is_durable() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = LogOptions { rotate_at: 1, faults: Faults::none() };
        let (log, _) = ChangeLog::open(dir.path(), options.clone(), 0).expect("open");
        for _ in 0..3 {
            log.append(&batch()).expect("append");
            let end = log.end();
            log.append(&batch()).expect("append");
            let nothing = || panic!("durable");
            log.durable.wait(end, nothing).expect("nothing to do");
        }
        drop(log);
        let (log, scanned) = ChangeLog::open(dir.path(), options, 0).expect("no zeros in the middle");
        assert_eq!(scanned.files.len(), 6);
        drop(log);
    }
}
