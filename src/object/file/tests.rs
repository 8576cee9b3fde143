//! What a directory store does that others have no counterpart for; the rest is
//! tests/object_store.rs.

use std::fs;

use super::*;

fn put(store: &FileStore, key: &str, body: &'static [u8]) -> Result<Etag, ObjectErrorKind> {
    store.put(key, Bytes::from_static(body), PutCond::Always).map_err(|error| error.kind)
}

#[test]
fn reading_makes_no_directory_and_the_first_put_does() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let root = dir.path().join("a/b");
    let store = FileStore::new(&root);
    assert!(store.get("x").expect("an empty store").is_none());
    assert!(store.list("", None).expect("an empty store").is_empty());
    assert!(store.delete("x").is_ok());
    assert!(!root.exists());
    assert!(put(&store, "x", b"1").is_ok());
    assert!(root.join("x").is_file());
}

/// Where its directory is missing, and where an empty mount point is in its place: nothing
/// is found, and nothing is made.
fn is_out_of_reach(store: &FileStore, root: &Path) {
    for empty in [false, true] {
        if empty {
            fs::create_dir(root).expect("an empty mount point");
        }
        assert_eq!(store.get("x").map(drop).map_err(|e| e.kind), Err(ObjectErrorKind::Unreachable));
        assert_eq!(store.list("", None).map(drop).map_err(|e| e.kind), Err(ObjectErrorKind::Unreachable));
        assert_eq!(store.delete("x").map_err(|e| e.kind), Err(ObjectErrorKind::Unreachable));
        assert_eq!(put(store, "y", b"1"), Err(ObjectErrorKind::Unreachable));
        assert_eq!(root.exists(), empty);
    }
    assert_eq!(fs::read_dir(root).expect("still there").count(), 0, "nothing may be written there");
    fs::remove_dir(root).expect("remove the mount point");
}

#[test]
fn a_directory_that_went_away_is_out_of_reach_and_not_empty() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (root, away) = (dir.path().join("root"), dir.path().join("away"));
    let store = FileStore::new(&root);
    assert!(put(&store, "x", b"1").is_ok());
    fs::rename(&root, &away).expect("move away");
    is_out_of_reach(&store, &root);
    fs::rename(&away, &root).expect("move back");
    assert!(store.get("x").expect("back again").is_some());
}

#[test]
fn a_directory_that_has_to_exist_is_made_by_nobody() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (root, away) = (dir.path().join("root"), dir.path().join("away"));
    assert!(put(&FileStore::new(&root), "x", b"1").is_ok());
    fs::rename(&root, &away).expect("move away");
    let store = FileStore::new(&root);
    store.expect_existing();
    is_out_of_reach(&store, &root);
    fs::create_dir(&root).expect("a copy without dot files");
    fs::copy(away.join("x"), root.join("x")).expect("copy");
    assert!(store.get("x").expect("readable").is_some());
    assert!(put(&store, "y", b"2").is_ok());
}

#[test]
fn temporary_files_of_the_dead_are_removed_and_those_of_the_living_are_not() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let first = FileStore::new(dir.path());
    assert!(put(&first, "x", b"1").is_ok());
    let temps = dir.path().join(".litefs-tmp");
    fs::write(temps.join("0000000000000001"), b"half").expect("a dead writer's file");
    let living = first.root.temp().expect("a temporary file");
    let second = FileStore::new(dir.path());
    assert!(second.get("x").expect("readable").is_some());
    assert_eq!(fs::read_dir(&temps).expect("there").count(), 1);
    drop(living);
    assert_eq!(fs::read_dir(&temps).expect("there").count(), 0);
}

#[test]
fn a_copy_without_dot_files_is_a_store_too() {
    let dir = tempfile::tempdir().expect("temporary directory");
    fs::create_dir(dir.path().join("db")).expect("directory");
    fs::write(dir.path().join("db/x"), b"1").expect("object");
    let store = FileStore::new(dir.path());
    assert_eq!(store.list("", None).expect("listing").len(), 1);
    assert!(put(&store, "db/y", b"2").is_ok());
    assert_eq!(store.list("", None).expect("listing").len(), 2);
}

#[test]
fn own_files_are_no_keys() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = FileStore::new(dir.path());
    for key in [".litefs-store", ".litefs-tmp/x", "../x", "/x", "a//b", "a/", "", "a/./b", "a\nb"] {
        assert_eq!(put(&store, key, b"1"), Err(ObjectErrorKind::Unsupported), "{key:?}");
        assert!(store.get(key).is_err(), "{key:?}");
    }
}

#[test]
fn an_object_and_others_below_it_are_refused_clearly() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = FileStore::new(dir.path());
    assert!(put(&store, "a/b", b"1").is_ok());
    let error = store.put("a", Bytes::new(), PutCond::Always).expect_err("a is a directory");
    assert_eq!(error.kind, ObjectErrorKind::Unsupported);
    assert!(error.why.contains("share a name"), "{error}");
    assert!(store.get("a").expect("no object").is_none());
    assert_eq!(put(&store, "a/b/c", b"1"), Err(ObjectErrorKind::Unsupported));
}

#[test]
fn a_disk_that_cannot_be_written_is_out_of_reach_with_a_remedy() {
    for (errno, words) in [
        (rustix::io::Errno::NOSPC, "free some space"),
        (rustix::io::Errno::ROFS, "remount"),
        (rustix::io::Errno::ACCESS, "right to read and write"),
        (rustix::io::Errno::IO, ""),
    ] {
        let error = error::classify("writing object x in file:///y".to_owned(), &errno.into());
        assert_eq!(error.kind, ObjectErrorKind::Unreachable);
        assert!(error.is_transient() && error.why.contains(words), "{error}");
    }
}

#[test]
fn a_new_directory_disappears_with_its_last_object() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = FileStore::new(dir.path());
    assert!(put(&store, "a/b/c", b"1").is_ok());
    assert!(put(&store, "a/d", b"1").is_ok());
    store.delete("a/b/c").expect("deleted");
    assert!(!dir.path().join("a/b").exists());
    assert!(dir.path().join("a/d").exists());
}

#[test]
fn a_dated_object_has_its_time_as_its_files() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = FileStore::new(dir.path());
    let made = Timestamp::from_millis(1_700_000_000_123);
    store.put_dated("x", Bytes::from_static(b"1"), PutCond::IfAbsent, made).expect("put");
    store.put_file_dated("y", &dir.path().join("x"), made).expect("put");
    for name in ["x", "y"] {
        let time = fs::metadata(dir.path().join(name)).and_then(|meta| meta.modified()).expect("a time");
        let millis = time.duration_since(std::time::UNIX_EPOCH).map(|time| time.as_millis());
        assert_eq!(millis.expect("after 1970"), 1_700_000_000_123);
    }
}
