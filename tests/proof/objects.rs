//! The power goes after every call of an archive in a directory: what a put answered is
//! there, and what was there goes only by a call.

use std::collections::BTreeMap;

use litefs::object::{FileStore, ObjectStore, PutCond};

use super::disk::Disk;
use super::workload::{Random, seed_offset};
use super::world::scratch;

/// The contents that a loss of power may leave under a key; `None`: no object.
type Allowed = Vec<Option<Vec<u8>>>;

fn check(disk: &Disk, allowed: &BTreeMap<String, Allowed>, seed: u64, what: &str) {
    let dir = scratch();
    let left = dir.path().join("archive");
    disk.lose_power(&left, &mut Random(seed));
    let store = FileStore::new(&left);
    for (key, contents) in allowed {
        let found = store.get(key).unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = found.map(|object| object.body.to_vec());
        assert!(contents.contains(&found), "{what}: {key} is {found:?}, not of {contents:?}");
        let listed = store.list(key, None).expect("a list").into_iter().find(|info| &info.key == key);
        assert_eq!(listed.map(|info| info.size), found.map(|body| body.len() as u64), "{what}: {key}");
    }
}

#[test]
fn a_loss_of_power_takes_no_object_that_a_put_answered() {
    for seed in 0..10 {
        let seed = seed + seed_offset();
        println!("seed {seed}");
        let (dir, mut random) = (scratch(), Random(seed));
        let root = dir.path().join("archive");
        std::fs::create_dir_all(&root).expect("a directory");
        let disk = Disk::watch(&root);
        let store = FileStore::new(&root);
        let mut allowed: BTreeMap<String, Allowed> = BTreeMap::new();
        for step in 0..40 {
            let key = format!("{}/{}", ["log", "db/a", "db/b"][random.below(3) as usize], random.below(4));
            let body: Vec<u8> = (0..random.below(3000)).map(|_| random.next() as u8).collect();
            let now = store.get(&key).expect("read");
            let what = format!("seed {seed}, step {step}, {key}");
            match random.below(5) {
                0 => {
                    store.delete(&key).expect("deleted");
                    // It may come back: a delete promises nothing that the archive needs.
                    let mut either = allowed.remove(&key).unwrap_or_default();
                    either.push(None);
                    allowed.insert(key.clone(), either);
                }
                choice => {
                    let cond = match (&now, choice) {
                        (None, 1 | 2) => PutCond::IfAbsent,
                        (Some(object), 1 | 2) => PutCond::IfMatch(object.etag.clone()),
                        _ => PutCond::Always,
                    };
                    store.put(&key, body.clone().into(), cond).expect("put");
                    allowed.insert(key.clone(), vec![Some(body)]);
                }
            }
            check(&disk, &allowed, seed << 16 | step, &what);
        }
    }
}
