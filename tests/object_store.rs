//! The object stores, each under the same conformance suite.

#[path = "support/object_conformance.rs"]
mod object_conformance;
#[path = "support/outside.rs"]
mod outside;
#[path = "support/s3_server/mod.rs"]
mod s3_server;

use std::sync::Arc;

use litefs::object::{
    Counted, Faulty, FileStore, MemoryStore, ObjectStore, Options, S3Store, check_conditions, from_url,
};
use object_conformance::{Effort, run};
use outside::Outside;
use s3_server::{Quirks, S3Server};

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

fn s3(server: &S3Server) -> S3Store {
    S3Store::new(server.place("a/b")).expect("a store")
}

#[test]
fn an_s3_store_conforms() {
    let server = S3Server::start();
    let store = from_url(&server.url("a/b"), &S3Server::options()).expect("a store");
    let other: Arc<dyn ObjectStore> = Arc::new(s3(&server));
    run(&store, &other, "t", LOCAL);
    assert_eq!(server.open_uploads(), 0);
}

#[test]
fn an_s3_store_conforms_where_etags_are_compared_without_quotes_and_ranges_ignored() {
    let server = S3Server::start();
    server.quirks(Quirks { unquoted_etags: true, ignores_ranges: true, ..Quirks::default() });
    let store: Arc<dyn ObjectStore> = Arc::new(s3(&server));
    let other: Arc<dyn ObjectStore> = Arc::new(s3(&server));
    run(&store, &other, "t", Effort { threads: 8, rounds: 5 });
}

/// A server outside; scripts/test starts both.
fn conforms_outside(server: Option<Outside>) {
    let Some(server) = server else { return };
    let (url, options) = (&server.url, server.options());
    let store = from_url(url, &options).expect("a store");
    let other = from_url(url, &options).expect("a store");
    let area = format!("run-{:016x}", rand::random::<u64>());
    check_conditions(&store).expect("safe for a lease");
    run(&store, &other, &area, Effort { threads: 8, rounds: 5 });
    for left in store.list(&format!("{area}/"), None).expect("list") {
        store.delete(&left.key).expect("delete");
    }
}

#[test]
fn minio_conforms() {
    conforms_outside(Outside::minio());
}

#[test]
fn ministack_conforms() {
    conforms_outside(Outside::ministack());
}
