//! Whether a store keeps the conditions of puts, found out by trying: some ignore
//! them without a word, and would give the lease to everyone. Must not judge a store
//! by its name.

use std::sync::{Arc, Barrier};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Etag, ObjectError, ObjectErrorKind, ObjectStore, PutCond};

/// Where the verdict of a full probe is kept, so that later starts try less.
const VERDICT: &str = ".probe.json";
const RACERS: usize = 8;
const ROUNDS: usize = 3;

#[derive(Serialize, Deserialize)]
struct Verdict {
    version: u32,
    store: String,
}

/// Makes sure that `store` keeps the conditions of puts: the first time with races
/// (about 60 requests), later by the verdict that was kept (one request).
///
/// # Errors
/// Kind `Unsupported` if it does not, with the request that showed it; else what
/// kept the probe from finding out.
pub fn check_conditions(store: &Arc<dyn ObjectStore>) -> Result<(), ObjectError> {
    if conditions_checked(store)? {
        return Ok(());
    }
    let area = format!(".probe/{:016x}", rand::random::<u64>());
    let keys = Keys { area, store };
    let result = keys.sequence().and_then(|()| keys.races());
    keys.clean_up();
    result?;
    let verdict = Verdict { version: 1, store: store.describe() };
    let body = serde_json::to_vec(&verdict).unwrap_or_default();
    store.put(VERDICT, body.into(), PutCond::Always)?;
    Ok(())
}

/// Whether `check_conditions` has found before that `store` keeps them; writes nothing.
///
/// # Errors
/// As `get`.
pub fn conditions_checked(store: &Arc<dyn ObjectStore>) -> Result<bool, ObjectError> {
    let probed = store.get(VERDICT)?.and_then(|object| serde_json::from_slice::<Verdict>(&object.body).ok());
    Ok(probed.is_some_and(|verdict| verdict.version == 1 && verdict.store == store.describe()))
}

struct Keys<'a> {
    area: String,
    store: &'a Arc<dyn ObjectStore>,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.area)
    }

    fn unsafe_because(&self, what: &str) -> ObjectError {
        ObjectError {
            kind: ObjectErrorKind::Unsupported,
            attempt: format!("checking that {} keeps the conditions of puts", self.store.describe()),
            why: format!(
                "{what}; two nodes could both become primary on it: use a store with conditional puts, \
                 or one node with lease.type = \"static\""
            ),
        }
    }

    /// Puts, and tells whether the condition held.
    fn put(&self, key: &str, body: &str, cond: PutCond) -> Result<Option<Etag>, ObjectError> {
        match self.store.put(key, Bytes::copy_from_slice(body.as_bytes()), cond) {
            Ok(etag) => Ok(Some(etag)),
            Err(error) if error.kind == ObjectErrorKind::Precondition => Ok(None),
            Err(error) if error.kind == ObjectErrorKind::Unsupported => Err(self.unsafe_because(&error.why)),
            Err(error) => Err(error),
        }
    }

    /// One after the other: what one writer can see.
    fn sequence(&self) -> Result<(), ObjectError> {
        let key = self.key("x");
        let Some(first) = self.put(&key, "1", PutCond::IfAbsent)? else {
            return Err(self.unsafe_because("it refuses to create an object that is not there"));
        };
        if self.put(&key, "2", PutCond::IfAbsent)?.is_some() {
            return Err(self.unsafe_because(
                "it overwrites an object that was to be created (If-None-Match is ignored)",
            ));
        }
        let Some(second) = self.put(&key, "3", PutCond::IfMatch(first.clone()))? else {
            return Err(
                self.unsafe_because("it refuses to overwrite the current version (If-Match never holds)")
            );
        };
        if self.put(&key, "4", PutCond::IfMatch(first))?.is_some() {
            return Err(self.unsafe_because("it overwrites a newer version (If-Match is ignored)"));
        }
        match self.store.get(&key)? {
            Some(object) if &object.body[..] == b"3" && object.etag == second => Ok(()),
            _ => Err(self.unsafe_because("it does not give back what was just written")),
        }
    }

    /// All at once: whether the condition and the write are one step.
    fn races(&self) -> Result<(), ObjectError> {
        let swapped = self.key("y");
        let mut etag = self.put(&swapped, "start", PutCond::Always)?;
        for round in 0..ROUNDS {
            let created = self.key(&format!("race-{round}"));
            self.race(&created, &PutCond::IfAbsent)?;
            if let Some(current) = etag {
                etag = Some(self.race(&swapped, &PutCond::IfMatch(current))?);
            }
        }
        Ok(())
    }

    fn race(&self, key: &str, cond: &PutCond) -> Result<Etag, ObjectError> {
        let start = Barrier::new(RACERS);
        let results: Vec<_> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..RACERS)
                .map(|n| {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        // Where ETags are hashes of the content, equal bodies are one version.
                        let body = format!("{:032x} by {n}", rand::random::<u128>());
                        self.put(key, &body, cond.clone())
                    })
                })
                .collect();
            racers.into_iter().filter_map(|racer| racer.join().ok()).collect()
        });
        let mut winners = Vec::new();
        for result in results {
            winners.extend(result?);
        }
        match winners.len() {
            1 => winners.pop().ok_or_else(|| self.unsafe_because("a race has no winner")),
            0 => Err(self.unsafe_because("none of several writers at once may write")),
            more => Err(self.unsafe_because(&format!("{more} of {RACERS} writers at once win"))),
        }
    }

    fn clean_up(&self) {
        let left = self.store.list(&format!("{}/", self.area), None).unwrap_or_default();
        for object in left {
            if let Err(error) = self.store.delete(&object.key) {
                tracing::debug!(key = object.key, %error, "an object of the probe stays behind");
            }
        }
    }
}
