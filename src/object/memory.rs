//! An object store in memory, for tests and simulations: exact, atomic, gone with
//! the process. Must not be used for anything that is to last.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Etag, Object, ObjectError, ObjectErrorKind, ObjectInfo, ObjectStore, PutCond, key};

/// An object store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    version: u64,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// A copy of the store as it is now, for tests that go back to a moment.
    #[must_use]
    pub fn snapshot(&self) -> MemoryStore {
        let state = self.state.lock();
        MemoryStore { state: Mutex::new(State { objects: state.objects.clone(), version: state.version }) }
    }

    fn error(&self, kind: ObjectErrorKind, attempt: &str, key: &str, why: &str) -> ObjectError {
        ObjectError { kind, attempt: format!("{attempt} {key} in {}", self.describe()), why: why.to_owned() }
    }
}

impl ObjectStore for MemoryStore {
    fn get(&self, key: &str) -> Result<Option<Object>, ObjectError> {
        key::check("reading object", key)?;
        Ok(self.state.lock().objects.get(key).cloned())
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Bytes, ObjectError> {
        key::check("reading object", key)?;
        let state = self.state.lock();
        let Some(object) = state.objects.get(key) else {
            return Err(self.error(
                ObjectErrorKind::NotFound,
                "reading object",
                key,
                "there is no such object",
            ));
        };
        let size = object.body.len() as u64;
        let begin = offset.min(size);
        let end = offset.saturating_add(len).min(size);
        Ok(object.body.slice(begin as usize..end as usize))
    }

    fn head(&self, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        key::check("looking up object", key)?;
        let state = self.state.lock();
        Ok(state
            .objects
            .get(key)
            .map(|object| ObjectInfo { key: key.to_owned(), size: object.body.len() as u64 }))
    }

    fn put(&self, key: &str, body: Bytes, cond: PutCond) -> Result<Etag, ObjectError> {
        key::check("writing object", key)?;
        let mut state = self.state.lock();
        let current = state.objects.get(key).map(|object| &object.etag);
        let why = match (&cond, current) {
            (PutCond::Always, _) | (PutCond::IfAbsent, None) => None,
            (PutCond::IfAbsent, Some(_)) => Some("there is such an object already"),
            (PutCond::IfMatch(etag), Some(current)) if etag == current => None,
            (PutCond::IfMatch(_), Some(_)) => Some("the object has changed since it was read"),
            (PutCond::IfMatch(_), None) => Some("there is no such object any more"),
        };
        if let Some(why) = why {
            return Err(self.error(ObjectErrorKind::Precondition, "writing object", key, why));
        }
        state.version += 1;
        let etag = Etag(format!("v{}", state.version));
        state.objects.insert(key.to_owned(), Object { body, etag: etag.clone() });
        Ok(etag)
    }

    fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        let body = std::fs::read(path).map_err(|error| {
            let attempt = format!("reading {} to write it as object", path.display());
            self.error(ObjectErrorKind::Local, &attempt, key, &error.to_string())
        })?;
        self.put(key, body.into(), PutCond::Always).map(drop)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectError> {
        key::check("deleting object", key)?;
        self.state.lock().objects.remove(key);
        Ok(())
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectInfo>, ObjectError> {
        let state = self.state.lock();
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        Ok(state
            .objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, object)| ObjectInfo { key: key.clone(), size: object.body.len() as u64 })
            .collect())
    }

    fn describe(&self) -> String {
        "memory:".to_owned()
    }
}
