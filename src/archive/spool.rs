//! Files that are too large for memory on their way into the archive: written,
//! summed, uploaded, gone. Must not outlive the process if that can be helped.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, Digest};

use super::Archive;
use super::error::ArchiveError;
use crate::object::{ObjectError, ObjectErrorKind, PutCond};
use crate::words::Timestamp;

/// Up to this size a file is uploaded from memory, under a condition.
const SMALL: u64 = 8 << 20;
/// So much is read of a remote object at once.
const READ: u64 = 4 << 20;

/// A finished file; deleted on drop.
#[derive(Debug)]
pub struct Spooled {
    path: PathBuf,
    pub(super) size: u64,
    pub(super) sum: u64,
}

impl Spooled {
    /// Where it is, until this is dropped.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A file that is being written.
pub(super) struct SpoolWriter {
    file: BufWriter<File>,
    digest: Digest,
    done: Spooled,
}

impl SpoolWriter {
    /// A new file in the spool directory.
    pub(super) fn create(archive: &Archive) -> Result<SpoolWriter, ArchiveError> {
        let dir = &archive.options.spool;
        let path = dir.join(format!("litefs-{:016x}.tmp", (archive.options.random)()));
        let attempt = || format!("making {}", path.display());
        std::fs::create_dir_all(dir).map_err(ArchiveError::local(attempt()))?;
        let file = File::options().write(true).create_new(true).open(&path);
        let file = file.map_err(ArchiveError::local(attempt()))?;
        Ok(SpoolWriter {
            file: BufWriter::with_capacity(256 << 10, file),
            digest: Digest::new(CrcAlgorithm::Crc64Nvme),
            done: Spooled { path, size: 0, sum: 0 },
        })
    }

    /// Everything is written. It is not made durable: it is a copy.
    pub(super) fn finish(mut self) -> Result<Spooled, ArchiveError> {
        let attempt = format!("writing {}", self.done.path.display());
        self.file.flush().map_err(ArchiveError::local(attempt))?;
        self.done.sum = self.digest.finalize();
        Ok(self.done)
    }
}

impl Write for SpoolWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(bytes.get(..written).unwrap_or(bytes));
        self.done.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What came of an upload.
pub(super) enum Uploaded {
    /// The object is the file.
    Ours,
    /// Another object lies at the key: left there by upkeep that did not come to
    /// its end, or put at the same time by another node.
    Other(u64),
}

impl Archive {
    /// Uploads a file, of what was last changed at `made`, to a key that nothing names
    /// yet. What lies there already is not replaced.
    pub(super) fn upload(
        &self,
        key: &str,
        file: &Spooled,
        made: Timestamp,
    ) -> Result<Uploaded, ArchiveError> {
        if file.size > SMALL {
            return match self.store.head(key)? {
                Some(info) => self.compare(key, info.size, file),
                None => {
                    self.store.put_file_dated(key, &file.path, made)?;
                    Ok(Uploaded::Ours)
                }
            };
        }
        let attempt = format!("reading {}", file.path.display());
        let bytes = std::fs::read(&file.path).map_err(ArchiveError::local(attempt))?;
        self.upload_bytes(key, bytes.into(), file.sum, made)
    }

    /// As `upload`, from memory.
    pub(super) fn upload_bytes(
        &self,
        key: &str,
        bytes: bytes::Bytes,
        sum: u64,
        made: Timestamp,
    ) -> Result<Uploaded, ArchiveError> {
        match self.store.put_dated(key, bytes, PutCond::IfAbsent, made) {
            Ok(_) => Ok(Uploaded::Ours),
            Err(error) if matches!(error.kind, ObjectErrorKind::Precondition | ObjectErrorKind::Unknown) => {
                match self.store.get(key)? {
                    Some(found) if crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &found.body) == sum => {
                        Ok(Uploaded::Ours)
                    }
                    Some(found) => Ok(Uploaded::Other(found.body.len() as u64)),
                    None => Err(ObjectError { kind: ObjectErrorKind::Unknown, ..error }.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn compare(&self, key: &str, size: u64, file: &Spooled) -> Result<Uploaded, ArchiveError> {
        if size == file.size && self.sum_of(key, size)? == file.sum {
            return Ok(Uploaded::Ours);
        }
        Ok(Uploaded::Other(size))
    }

    /// The checksum of an object's bytes.
    pub(super) fn sum_of(&self, key: &str, size: u64) -> Result<u64, ArchiveError> {
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        let mut at = 0;
        while at < size {
            let bytes = self.store.get_range(key, at, READ.min(size - at))?;
            if bytes.is_empty() {
                return Err(ArchiveError::damaged(key, format!("it has {at} bytes, not {size}")));
            }
            digest.update(&bytes);
            at += bytes.len() as u64;
        }
        Ok(digest.finalize())
    }

    /// A reader of an object of this size.
    pub(super) fn reader<'a>(&'a self, key: &'a str, size: u64) -> ObjectReader<'a> {
        ObjectReader { archive: self, key, size, at: 0, chunk: bytes::Bytes::new(), error: None }
    }
}

/// Reads an object from begin to end in large pieces.
pub(super) struct ObjectReader<'a> {
    archive: &'a Archive,
    key: &'a str,
    size: u64,
    at: u64,
    chunk: bytes::Bytes,
    /// The store's error behind the last `io::Error`.
    pub(super) error: Option<ObjectError>,
}

impl Read for ObjectReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() && self.at < self.size {
            let wanted = READ.min(self.size - self.at);
            match self.archive.store.get_range(self.key, self.at, wanted) {
                Ok(bytes) => self.chunk = bytes,
                Err(error) => {
                    let text = error.to_string();
                    self.error = Some(error);
                    return Err(io::Error::other(text));
                }
            }
            self.at += self.chunk.len() as u64;
        }
        let len = into.len().min(self.chunk.len());
        let piece = self.chunk.split_to(len);
        if let Some(into) = into.get_mut(..len) {
            into.copy_from_slice(&piece);
        }
        Ok(len)
    }
}
