//! The object store: what litefs needs of S3-compatible storage, as one small
//! blocking trait, with its implementations and the wrappers that tests use. Must
//! not know what the objects mean.

mod counted;
mod error;
mod faulty;
mod file;
mod key;
mod location;
mod memory;
mod one_writer;
mod op;
mod probe;
mod s3;

pub use counted::{Counted, Counts, OpTotals, Totals};
pub use error::{ObjectError, ObjectErrorKind};
pub use faulty::{Call, Fault, Faulty, Hook, Rule};
pub use file::FileStore;
pub use location::{KeyPair, Location, Options, S3Location, from_url};
pub use memory::MemoryStore;
pub use one_writer::OneWriter;
pub use op::Op;
pub use probe::{check_conditions, conditions_checked};
pub use s3::S3Store;

use bytes::Bytes;
use std::path::Path;

use crate::words::Timestamp;

/// An object's version as the store names it (S3: the ETag, kept verbatim).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Etag(pub String);

/// A whole object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its content.
    pub body: Bytes,
    /// Its version.
    pub etag: Etag,
}

/// What a listing or a HEAD tells of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key, below the store's prefix.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
}

/// The condition of a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutCond {
    /// Put whatever is there.
    Always,
    /// Put only if there is no such object (S3: `If-None-Match: *`).
    IfAbsent,
    /// Put only over this version (S3: `If-Match`).
    IfMatch(Etag),
}

/// A store of objects under one prefix. Calls block; implementations bound their
/// own time and retry what is safe to retry (never a conditional put whose reply
/// was lost: that is the caller's to resolve, by reading).
pub trait ObjectStore: Send + Sync {
    /// The object, or `None`.
    fn get(&self, key: &str) -> Result<Option<Object>, ObjectError>;

    /// `len` bytes from `offset`; fewer at the object's end. A missing object is
    /// an error of kind `NotFound`.
    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Bytes, ObjectError>;

    /// Size of the object, or `None`.
    fn head(&self, key: &str) -> Result<Option<ObjectInfo>, ObjectError>;

    /// Puts an object, atomically; a condition that does not hold is an error of
    /// kind `Precondition`; kind `Unknown` says that it may or may not be there.
    fn put(&self, key: &str, body: Bytes, cond: PutCond) -> Result<Etag, ObjectError>;

    /// Puts a file of any size, atomically, over whatever is there.
    fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError>;

    /// As `put`, noting when what the object holds was made, where the store has a place
    /// for it that Litestream reads too (S3: metadata; a directory: the file's time).
    fn put_dated(
        &self,
        key: &str,
        body: Bytes,
        cond: PutCond,
        _made: Timestamp,
    ) -> Result<Etag, ObjectError> {
        self.put(key, body, cond)
    }

    /// As `put_file`, with the time as `put_dated` notes it.
    fn put_file_dated(&self, key: &str, path: &Path, _made: Timestamp) -> Result<(), ObjectError> {
        self.put_file(key, path)
    }

    /// Deletes an object; one that is not there is no error.
    fn delete(&self, key: &str) -> Result<(), ObjectError>;

    /// Every object whose key begins with `prefix`, after key `after` if given, by
    /// key in ascending byte order.
    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectInfo>, ObjectError>;

    /// The store's address, for messages; without credentials.
    fn describe(&self) -> String;

    /// From now on a store of which nothing is there is out of reach, not new: nothing
    /// makes it. For stores that cannot tell the two apart by themselves (a directory).
    fn expect_existing(&self) {}
}
