//! The object stores, each under the same conformance suite.

#[path = "support/object_conformance.rs"]
mod object_conformance;

use std::sync::Arc;

use litefs::object::{Counted, Faulty, FileStore, MemoryStore, ObjectStore, Options, from_url};
use object_conformance::{Effort, run};

const LOCAL: Effort = Effort { threads: 16, rounds: 20 };

#[test]
fn a_memory_store_conforms() {
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
    run(&store, &store.clone(), "t", LOCAL);
}

#[test]
fn a_directory_conforms() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let url = format!("file://{}/a%20b", dir.path().display());
    let store = from_url(&url, &Options::default()).expect("open");
    let other: Arc<dyn ObjectStore> = Arc::new(FileStore::new(dir.path().join("a b")));
    run(&store, &other, "t", LOCAL);
}

#[test]
fn the_wrappers_conform_and_count() {
    let counted = Arc::new(Counted::new(Arc::new(MemoryStore::new())));
    let faulty = Arc::new(Faulty::new(counted.clone()));
    let store: Arc<dyn ObjectStore> = faulty.clone();
    run(&store, &store.clone(), "t", Effort { threads: 4, rounds: 5 });
    let totals = counted.totals();
    assert!(totals.calls() > 100 && totals.bytes_written() > 20_000_000 && totals.bytes_read() > 20_000_000);
    assert_eq!(totals.list.errors, 0);
}
