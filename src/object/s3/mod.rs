//! An object store on S3 and what speaks its language: conditional puts are sent
//! once, everything else is retried within bounds; large objects go in parallel
//! parts. Must not be asked from within an async runtime's worker that it needs.

mod bulk;
mod classify;
mod client;
mod read;
mod write;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, Semaphore};

use super::{Etag, Object, ObjectError, ObjectErrorKind, ObjectInfo, ObjectStore, PutCond, S3Location, key};
use crate::words::Timestamp;
use classify::Attempt;
use client::{Clients, Patience};
use write::Quoting;

/// Requests for content at a time: more gain nothing on one machine's network.
const READS_AT_A_TIME: usize = 16;

/// An object store on S3.
pub struct S3Store {
    // Only `None` while it is dropped.
    runtime: Option<Runtime>,
    core: Arc<Core>,
}

/// What the calls share.
struct Core {
    place: S3Location,
    patience: Patience,
    clients: OnceCell<Clients>,
    reads: Semaphore,
    quoting: Quoting,
    orphans_seen: AtomicBool,
}

impl S3Store {
    /// The store at `place`. Nothing is asked of it yet.
    ///
    /// # Errors
    /// Kind `Local` if the process can have no more threads.
    pub fn new(place: S3Location) -> Result<S3Store, ObjectError> {
        S3Store::with(place, Patience::BULK, 2)
    }

    /// The store at `place` for a lease with this time to live: its own connections,
    /// so that uploads cannot hold up a renewal, a sixth of the time to live per
    /// request, and no retries, so that no success of ours looks like another's.
    ///
    /// # Errors
    /// As `new`.
    pub fn for_lease(place: S3Location, ttl: Duration) -> Result<S3Store, ObjectError> {
        S3Store::with(place, Patience::lease(ttl), 1)
    }

    fn with(place: S3Location, patience: Patience, threads: usize) -> Result<S3Store, ObjectError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("litefs-s3")
            .enable_all()
            .build()
            .map_err(|error| ObjectError {
                kind: ObjectErrorKind::Local,
                attempt: format!("starting the threads for {place}"),
                why: error.to_string(),
            })?;
        let core = Core {
            place,
            patience,
            clients: OnceCell::new(),
            reads: Semaphore::new(READS_AT_A_TIME),
            quoting: Quoting::default(),
            orphans_seen: AtomicBool::new(false),
        };
        Ok(S3Store { runtime: Some(runtime), core: Arc::new(core) })
    }

    fn put_body(
        &self,
        key: &str,
        body: Bytes,
        cond: PutCond,
        made: Option<Timestamp>,
    ) -> Result<Etag, ObjectError> {
        key::check("writing object", key)?;
        let key = key.to_owned();
        self.wait(|core| async move { core.put(&key, body, cond, made).await })
    }

    fn put_path(&self, key: &str, path: &Path, made: Option<Timestamp>) -> Result<(), ObjectError> {
        key::check("writing object", key)?;
        let (key, path) = (key.to_owned(), path.to_owned());
        self.wait(|core| async move { core.put_file(&key, &path, made).await })
    }

    /// Runs `call` on the store's own threads and waits for it.
    fn wait<T, F>(&self, call: impl FnOnce(Arc<Core>) -> F) -> Result<T, ObjectError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ObjectError>> + Send + 'static,
    {
        let future = call(Arc::clone(&self.core));
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let gone = || ObjectError {
            kind: ObjectErrorKind::Unknown,
            attempt: format!("using {}", self.core.place),
            why: "the S3 client's thread ended without an answer; see the log for a panic".to_owned(),
        };
        let Some(runtime) = &self.runtime else { return Err(gone()) };
        runtime.spawn(async move {
            let _ = sender.send(future.await);
        });
        receiver.recv().unwrap_or_else(|_| Err(gone()))
    }
}

impl Drop for S3Store {
    fn drop(&mut self) {
        // Dropping a runtime waits for its threads, which panics in async code.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Core {
    /// The clients; made, and the credentials looked for, at the first call.
    async fn clients(&self, attempt: &Attempt<'_>) -> Result<&Clients, ObjectError> {
        self.clients
            .get_or_try_init(|| client::connect(&self.place, self.patience))
            .await
            .map_err(|(kind, why)| attempt.error(kind, why))
    }

    fn reading<'a>(&'a self, what: &'static str, key: &'a str) -> Attempt<'a> {
        Attempt { what, key, place: &self.place, writes: false }
    }

    fn writing<'a>(&'a self, what: &'static str, key: &'a str) -> Attempt<'a> {
        Attempt { what, key, place: &self.place, writes: true }
    }
}

impl ObjectStore for S3Store {
    fn get(&self, key: &str) -> Result<Option<Object>, ObjectError> {
        key::check("reading object", key)?;
        let key = key.to_owned();
        self.wait(|core| async move { core.get(&key).await })
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Bytes, ObjectError> {
        key::check("reading object", key)?;
        let key = key.to_owned();
        self.wait(|core| async move { core.get_range(&key, offset, len).await })
    }

    fn head(&self, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        key::check("looking up object", key)?;
        let key = key.to_owned();
        self.wait(|core| async move {
            let found = core.head(&key).await?;
            Ok(found.map(|(size, _)| ObjectInfo { key, size }))
        })
    }

    fn put(&self, key: &str, body: Bytes, cond: PutCond) -> Result<Etag, ObjectError> {
        self.put_body(key, body, cond, None)
    }

    fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.put_path(key, path, None)
    }

    fn put_dated(&self, key: &str, body: Bytes, cond: PutCond, made: Timestamp) -> Result<Etag, ObjectError> {
        self.put_body(key, body, cond, Some(made))
    }

    fn put_file_dated(&self, key: &str, path: &Path, made: Timestamp) -> Result<(), ObjectError> {
        self.put_path(key, path, Some(made))
    }

    fn delete(&self, key: &str) -> Result<(), ObjectError> {
        key::check("deleting object", key)?;
        let key = key.to_owned();
        self.wait(|core| async move { core.delete(&key).await })
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectInfo>, ObjectError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.wait(|core| async move { core.list(&prefix, after.as_deref()).await })
    }

    fn describe(&self) -> String {
        self.core.place.to_string()
    }
}
