//! Counts what is asked of a store: calls, failures and bytes by kind of call, for
//! status, metrics and the tests that bound them. Must not change any answer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Etag, Object, ObjectError, ObjectInfo, ObjectStore, Op, PutCond};
use crate::words::Timestamp;

/// A store that counts.
pub struct Counted {
    inner: Arc<dyn ObjectStore>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct OpCounts {
    calls: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
}

/// The counters of a `Counted` store; shared, so they outlive it.
#[derive(Default)]
pub struct Counts([OpCounts; Op::ALL.len()]);

/// What was asked of a store by one kind of call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpTotals {
    /// Calls, failed ones too.
    pub calls: u64,
    /// Calls that failed, unmet conditions not counted.
    pub errors: u64,
    /// Bytes of object content read or written.
    pub bytes: u64,
}

/// What was asked of a store until one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Whole objects read.
    pub get: OpTotals,
    /// Parts of objects read.
    pub get_range: OpTotals,
    /// Sizes asked for.
    pub head: OpTotals,
    /// Objects written.
    pub put: OpTotals,
    /// Files written as objects.
    pub put_file: OpTotals,
    /// Objects deleted.
    pub delete: OpTotals,
    /// Listings.
    pub list: OpTotals,
}

impl Totals {
    /// Calls of every kind.
    pub fn calls(&self) -> u64 {
        [self.get, self.get_range, self.head, self.put, self.put_file, self.delete, self.list]
            .iter()
            .map(|op| op.calls)
            .sum()
    }

    /// Bytes of content read.
    pub fn bytes_read(&self) -> u64 {
        self.get.bytes + self.get_range.bytes
    }

    /// Bytes of content written.
    pub fn bytes_written(&self) -> u64 {
        self.put.bytes + self.put_file.bytes
    }
}

impl Counts {
    /// What was counted until now.
    pub fn totals(&self) -> Totals {
        let of = |op: Op| {
            let counts = &self.0[op.index()];
            OpTotals {
                calls: counts.calls.load(Ordering::Relaxed),
                errors: counts.errors.load(Ordering::Relaxed),
                bytes: counts.bytes.load(Ordering::Relaxed),
            }
        };
        Totals {
            get: of(Op::Get),
            get_range: of(Op::GetRange),
            head: of(Op::Head),
            put: of(Op::Put),
            put_file: of(Op::PutFile),
            delete: of(Op::Delete),
            list: of(Op::List),
        }
    }

    fn note<T>(
        &self,
        op: Op,
        result: Result<T, ObjectError>,
        bytes: impl FnOnce(&T) -> u64,
    ) -> Result<T, ObjectError> {
        let counts = &self.0[op.index()];
        counts.calls.fetch_add(1, Ordering::Relaxed);
        match &result {
            Ok(value) => {
                counts.bytes.fetch_add(bytes(value), Ordering::Relaxed);
            }
            Err(error) if error.kind != super::ObjectErrorKind::Precondition => {
                counts.errors.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {}
        }
        result
    }
}

impl Counted {
    /// Counts what is asked of `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Counted {
        Counted { inner, counts: Arc::default() }
    }

    /// The counters.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// What was counted until now.
    pub fn totals(&self) -> Totals {
        self.counts.totals()
    }
}

impl ObjectStore for Counted {
    fn get(&self, key: &str) -> Result<Option<Object>, ObjectError> {
        self.counts.note(Op::Get, self.inner.get(key), |object| {
            object.as_ref().map_or(0, |object| object.body.len() as u64)
        })
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Bytes, ObjectError> {
        self.counts.note(Op::GetRange, self.inner.get_range(key, offset, len), |body| body.len() as u64)
    }

    fn head(&self, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        self.counts.note(Op::Head, self.inner.head(key), |_| 0)
    }

    fn put(&self, key: &str, body: Bytes, cond: PutCond) -> Result<Etag, ObjectError> {
        let size = body.len() as u64;
        self.counts.note(Op::Put, self.inner.put(key, body, cond), |_| size)
    }

    fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
        self.counts.note(Op::PutFile, self.inner.put_file(key, path), |()| size)
    }

    fn put_dated(&self, key: &str, body: Bytes, cond: PutCond, made: Timestamp) -> Result<Etag, ObjectError> {
        let size = body.len() as u64;
        self.counts.note(Op::Put, self.inner.put_dated(key, body, cond, made), |_| size)
    }

    fn put_file_dated(&self, key: &str, path: &Path, made: Timestamp) -> Result<(), ObjectError> {
        let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
        self.counts.note(Op::PutFile, self.inner.put_file_dated(key, path, made), |()| size)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.counts.note(Op::Delete, self.inner.delete(key), |()| 0)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectInfo>, ObjectError> {
        self.counts.note(Op::List, self.inner.list(prefix, after), |_| 0)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn expect_existing(&self) {
        self.inner.expect_existing();
    }
}
