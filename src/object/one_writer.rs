//! A store for the one writer that a configuration promises: where the storage does not
//! keep the conditions of puts, they are looked after by reading first, and that is
//! said. Must not be used where two may write.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Etag, Object, ObjectError, ObjectErrorKind, ObjectInfo, ObjectStore, PutCond, check_conditions};
use crate::words::Timestamp;

/// A store with one writer.
pub struct OneWriter {
    inner: Arc<dyn ObjectStore>,
    /// Whether the storage keeps conditions, once it was found out.
    keeps: Mutex<Option<bool>>,
}

impl OneWriter {
    /// `inner`, for one writer.
    pub fn new(inner: Arc<dyn ObjectStore>) -> OneWriter {
        OneWriter { inner, keeps: Mutex::new(None) }
    }

    fn keeps_conditions(&self) -> Result<bool, ObjectError> {
        let mut keeps = self.keeps.lock();
        if let Some(keeps) = *keeps {
            return Ok(keeps);
        }
        let found = match check_conditions(&self.inner) {
            Ok(()) => true,
            Err(error) if error.kind == ObjectErrorKind::Unsupported => {
                tracing::warn!(
                    why = error.why,
                    "this storage does not keep the conditions of puts, so nothing but the configuration stops a \
                     second writer: run exactly one node on it"
                );
                false
            }
            Err(error) => return Err(error),
        };
        *keeps = Some(found);
        Ok(found)
    }

    /// What `cond` comes to, if reading is all there is to check it by.
    fn check(&self, key: &str, cond: PutCond) -> Result<PutCond, ObjectError> {
        if cond == PutCond::Always || self.keeps_conditions()? {
            return Ok(cond);
        }
        let holds = match &cond {
            PutCond::Always => true,
            PutCond::IfAbsent => self.inner.head(key)?.is_none(),
            PutCond::IfMatch(etag) => self.inner.get(key)?.is_some_and(|object| object.etag == *etag),
        };
        if holds {
            return Ok(PutCond::Always);
        }
        Err(ObjectError {
            kind: ObjectErrorKind::Precondition,
            attempt: format!("writing object {key} in {}", self.describe()),
            why: "another version of it is there".to_owned(),
        })
    }
}

impl ObjectStore for OneWriter {
    fn get(&self, key: &str) -> Result<Option<Object>, ObjectError> {
        self.inner.get(key)
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Bytes, ObjectError> {
        self.inner.get_range(key, offset, len)
    }

    fn head(&self, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        self.inner.head(key)
    }

    fn put(&self, key: &str, body: Bytes, cond: PutCond) -> Result<Etag, ObjectError> {
        let cond = self.check(key, cond)?;
        self.inner.put(key, body, cond)
    }

    fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.inner.put_file(key, path)
    }

    fn put_dated(&self, key: &str, body: Bytes, cond: PutCond, made: Timestamp) -> Result<Etag, ObjectError> {
        let cond = self.check(key, cond)?;
        self.inner.put_dated(key, body, cond, made)
    }

    fn put_file_dated(&self, key: &str, path: &Path, made: Timestamp) -> Result<(), ObjectError> {
        self.inner.put_file_dated(key, path, made)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.inner.delete(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectInfo>, ObjectError> {
        self.inner.list(prefix, after)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn expect_existing(&self) {
        self.inner.expect_existing();
    }
}
