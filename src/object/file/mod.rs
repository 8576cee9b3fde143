//! An object store in a directory (`file://`): for one machine, a mounted network
//! disk, tests. As exact as S3: puts are atomic and durable, conditions are checked
//! under a lock that other processes take too. Must not write outside its directory.

mod error;
mod root;
mod walk;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use super::{Etag, Object, ObjectError, ObjectErrorKind, ObjectInfo, ObjectStore, PutCond, key};
use crate::words::Timestamp;
use root::Root;

/// An object store in a directory. Opening it touches nothing: the directory is
/// made by the first put, unless it is known to exist, and may be out of reach for a
/// while (an unmounted disk).
pub struct FileStore {
    root: Root,
}

impl FileStore {
    /// The store in the directory `root`.
    pub fn new(root: impl Into<PathBuf>) -> FileStore {
        FileStore { root: Root::new(root.into()) }
    }

    fn attempt(&self, what: &str, key: &str) -> String {
        format!("{what} object {key} in {}", self.describe())
    }

    /// The key's path, if it is a key that this store can hold.
    fn path(&self, attempt: &str, key: &str) -> Result<PathBuf, ObjectError> {
        key::check(attempt, key)?;
        if root::is_reserved(key) {
            return Err(ObjectError {
                kind: ObjectErrorKind::Unsupported,
                attempt: format!("{attempt} {key:?}"),
                why: "a directory store keeps its own files under this name".to_owned(),
            });
        }
        Ok(self.root.path().join(key))
    }

    /// Opens an object to read it, `None` when it is not there.
    fn open(&self, key: &str) -> Result<Option<File>, ObjectError> {
        let path = self.path("reading object", key)?;
        let failed = |error| error::classify(self.attempt("reading", key), &error);
        if !self.root.attach().map_err(failed)? {
            return Ok(None);
        }
        match File::open(&path) {
            Ok(file) if file.metadata().map_err(failed)?.is_dir() => Ok(None),
            Ok(file) => Ok(Some(file)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn put_body(
        &self,
        key: &str,
        body: &Bytes,
        cond: &PutCond,
        made: Option<Timestamp>,
    ) -> Result<Etag, ObjectError> {
        let path = self.path("writing object", key)?;
        let failed = |error| error::classify(self.attempt("writing", key), &error);
        self.root.create().map_err(failed)?;
        let mut temp = self.root.temp().map_err(failed)?;
        temp.file().write_all(body).map_err(failed)?;
        temp.finish(made).map_err(failed)?;
        self.publish(temp, key, &path, cond)?;
        Ok(etag_of_bytes(body))
    }

    fn put_copy(&self, key: &str, source: &Path, made: Option<Timestamp>) -> Result<(), ObjectError> {
        let path = self.path("writing object", key)?;
        let failed = |error| error::classify(self.attempt("writing", key), &error);
        let mut from = File::open(source).map_err(|error| ObjectError {
            kind: ObjectErrorKind::Local,
            attempt: self.attempt(&format!("reading {} to write it as", source.display()), key),
            why: error.to_string(),
        })?;
        self.root.create().map_err(failed)?;
        let mut temp = self.root.temp().map_err(failed)?;
        io::copy(&mut from, temp.file()).map_err(failed)?;
        temp.finish(made).map_err(failed)?;
        self.publish(temp, key, &path, &PutCond::Always)
    }

    /// Moves a written temporary file to its key, if `cond` holds.
    fn publish(&self, temp: root::Temp, key: &str, path: &Path, cond: &PutCond) -> Result<(), ObjectError> {
        let failed = |error| error::classify(self.attempt("writing", key), &error);
        let guard = self.root.lock().map_err(failed)?;
        let unmet = match cond {
            PutCond::Always => None,
            PutCond::IfAbsent => path
                .symlink_metadata()
                .map(|_| "there is such an object already")
                .map_or_else(
                    |error| if is_absent(&error) { Ok(None) } else { Err(error) },
                    |why| Ok(Some(why)),
                )
                .map_err(failed)?,
            PutCond::IfMatch(etag) => match etag_of(path).map_err(failed)? {
                Some(current) if current == *etag => None,
                Some(_) => Some("the object has changed since it was read"),
                None => Some("there is no such object any more"),
            },
        };
        if let Some(why) = unmet {
            return Err(ObjectError {
                kind: ObjectErrorKind::Precondition,
                attempt: self.attempt("writing", key),
                why: why.to_owned(),
            });
        }
        self.root.make_parents(path).map_err(failed)?;
        temp.rename_to(path).map_err(failed)?;
        drop(guard);
        // From here on the object is visible; without this fsync a power cut could
        // take it away again.
        self.root.sync_parent(path).map_err(|error| ObjectError {
            kind: ObjectErrorKind::Unknown,
            ..error::classify(self.attempt("making durable", key), &error)
        })
    }
}

impl ObjectStore for FileStore {
    fn get(&self, key: &str) -> Result<Option<Object>, ObjectError> {
        let Some(mut file) = self.open(key)? else { return Ok(None) };
        let mut body = Vec::new();
        file.read_to_end(&mut body).map_err(|error| error::classify(self.attempt("reading", key), &error))?;
        let etag = etag_of_bytes(&body);
        Ok(Some(Object { body: body.into(), etag }))
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Bytes, ObjectError> {
        let Some(file) = self.open(key)? else {
            return Err(ObjectError {
                kind: ObjectErrorKind::NotFound,
                attempt: self.attempt("reading", key),
                why: "there is no such object".to_owned(),
            });
        };
        let failed = |error| error::classify(self.attempt("reading", key), &error);
        let size = file.metadata().map_err(failed)?.len();
        let len = size.saturating_sub(offset).min(len);
        let mut body = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut body, offset).map_err(failed)?;
        Ok(body.into())
    }

    fn head(&self, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        let path = self.path("looking up object", key)?;
        let failed = |error| error::classify(self.attempt("looking up", key), &error);
        if !self.root.attach().map_err(failed)? {
            return Ok(None);
        }
        match path.metadata() {
            Ok(meta) if meta.is_file() => Ok(Some(ObjectInfo { key: key.to_owned(), size: meta.len() })),
            Ok(_) => Ok(None),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn put(&self, key: &str, body: Bytes, cond: PutCond) -> Result<Etag, ObjectError> {
        self.put_body(key, &body, &cond, None)
    }

    fn put_file(&self, key: &str, source: &Path) -> Result<(), ObjectError> {
        self.put_copy(key, source, None)
    }

    fn put_dated(&self, key: &str, body: Bytes, cond: PutCond, made: Timestamp) -> Result<Etag, ObjectError> {
        self.put_body(key, &body, &cond, Some(made))
    }

    fn put_file_dated(&self, key: &str, source: &Path, made: Timestamp) -> Result<(), ObjectError> {
        self.put_copy(key, source, Some(made))
    }

    fn delete(&self, key: &str) -> Result<(), ObjectError> {
        let path = self.path("deleting object", key)?;
        let failed = |error| error::classify(self.attempt("deleting", key), &error);
        if !self.root.attach().map_err(failed)? {
            return Ok(());
        }
        self.root.create().map_err(failed)?;
        let _guard = self.root.lock().map_err(failed)?;
        match std::fs::remove_file(&path) {
            Ok(()) => {
                self.root.remove_empty_parents(&path);
                Ok(())
            }
            Err(error) if is_absent(&error) => Ok(()),
            // What lies below another key's name is a directory, not an object.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectInfo>, ObjectError> {
        let failed = |error| error::classify(format!("listing {prefix:?} in {}", self.describe()), &error);
        if !self.root.attach().map_err(failed)? {
            return Ok(Vec::new());
        }
        walk::list(self.root.path(), prefix, after).map_err(failed)
    }

    fn describe(&self) -> String {
        format!("file://{}", self.root.path().display())
    }

    fn expect_existing(&self) {
        self.root.expect_existing();
    }
}

/// Whether the error says that there is no such file (a file in the middle of the
/// path means the same: nothing can be below it).
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A version by content, as S3's ETag is: size and CRC-64 of the bytes.
fn etag_of_bytes(body: &[u8]) -> Etag {
    format_etag(body.len() as u64, crc_fast::checksum(CrcAlgorithm::Crc64Nvme, body))
}

fn etag_of(path: &Path) -> io::Result<Option<Etag>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if file.metadata()?.is_dir() {
        return Ok(None);
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    let mut buffer = vec![0; 1 << 16];
    let mut size = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some(format_etag(size, digest.finalize()))),
            Ok(read) => {
                digest.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn format_etag(size: u64, sum: u64) -> Etag {
    Etag(format!("{size:x}-{sum:016x}"))
}

#[cfg(test)]
mod tests;
