//! What every object store must do, whatever it is: one suite, run on each
//! implementation. Must not know which one it has.

use std::sync::Arc;
use std::sync::Barrier;

use bytes::Bytes;
use litefs::object::{Etag, ObjectError, ObjectErrorKind, ObjectStore, PutCond};

/// How hard to try; a real server over a network gets less.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Threads in a race.
    pub threads: usize,
    /// Rounds of a race.
    pub rounds: usize,
}

/// Runs the whole suite below `area` (keys of their own, so that several suites can
/// share a bucket); `store` and `other` are two openings of the same store.
pub fn run(store: &Arc<dyn ObjectStore>, other: &Arc<dyn ObjectStore>, area: &str, effort: Effort) {
    let area = |name: &str| format!("{area}/{name}");
    what_was_put_is_read_back(&**store, &area("basic"));
    ranges_end_where_the_object_ends(&**store, &area("range"));
    conditions_are_kept(&**store, &area("cond"));
    etags_change_with_every_version(&**store, &area("etag"));
    odd_keys_are_kept(&**store, &area("odd"));
    listings_are_whole_sorted_and_resumable(&**store, &area("list"));
    files_of_any_size_are_put(&**store, &area("file"));
    bad_keys_are_refused(&**store);
    what_one_puts_the_other_sees(&**store, &**other, &area("two"));
    one_of_many_creates_wins(store, other, &area("create"), effort);
    one_of_many_swaps_wins(store, other, &area("swap"), effort);
    no_swap_is_lost(store, other, &area("count"), effort);
    readers_never_see_half_an_object(store, other, &area("whole"), effort);
    assert!(!store.describe().is_empty());
}

fn put(store: &dyn ObjectStore, key: &str, body: &str) -> Etag {
    store.put(key, Bytes::copy_from_slice(body.as_bytes()), PutCond::Always).expect("put")
}

fn text(store: &dyn ObjectStore, key: &str) -> Option<String> {
    let object = store.get(key).expect("get")?;
    Some(String::from_utf8(object.body.to_vec()).expect("text"))
}

fn kind<T>(result: Result<T, ObjectError>) -> Option<ObjectErrorKind> {
    result.err().map(|error| error.kind)
}

fn what_was_put_is_read_back(store: &dyn ObjectStore, area: &str) {
    let key = format!("{area}/a/b.bin");
    assert!(store.get(&key).expect("get").is_none());
    assert!(store.head(&key).expect("head").is_none());
    let etag = put(store, &key, "one");
    let object = store.get(&key).expect("get").expect("there");
    assert_eq!((&object.body[..], &object.etag), (&b"one"[..], &etag));
    put(store, &key, "three");
    assert_eq!(text(store, &key).as_deref(), Some("three"));
    let info = store.head(&key).expect("head").expect("there");
    assert_eq!((info.key, info.size), (key.clone(), 5));
    put(store, &key, "");
    assert_eq!(text(store, &key).as_deref(), Some(""));
    assert_eq!(store.head(&key).expect("head").expect("there").size, 0);
    store.delete(&key).expect("delete");
    assert!(store.get(&key).expect("get").is_none());
    store.delete(&key).expect("deleting what is not there is no error");
}

fn ranges_end_where_the_object_ends(store: &dyn ObjectStore, area: &str) {
    let key = format!("{area}/x");
    assert_eq!(kind(store.get_range(&key, 0, 1)), Some(ObjectErrorKind::NotFound));
    put(store, &key, "0123456789");
    for (offset, len, want) in [
        (0, 4, "0123"),
        (3, 4, "3456"),
        (8, 100, "89"),
        (0, 10, "0123456789"),
        (10, 1, ""),
        (11, 5, ""),
        (u64::MAX, u64::MAX, ""),
        (5, u64::MAX, "56789"),
        (4, 0, ""),
    ] {
        let got = store.get_range(&key, offset, len).expect("range");
        assert_eq!(got, want.as_bytes(), "{len} bytes from {offset}");
    }
    put(store, &key, "");
    assert_eq!(store.get_range(&key, 0, 10).expect("range of nothing"), Bytes::new());
}

fn conditions_are_kept(store: &dyn ObjectStore, area: &str) {
    let key = format!("{area}/x");
    let unmet = Some(ObjectErrorKind::Precondition);
    let put = |body: &'static str, cond| store.put(&key, Bytes::from_static(body.as_bytes()), cond);
    assert_eq!(kind(put("no", PutCond::IfMatch(Etag("\"0123\"".to_owned())))), unmet);
    assert!(store.get(&key).expect("get").is_none(), "an unmet condition writes nothing");
    let first = put("first", PutCond::IfAbsent).expect("absent");
    assert_eq!(kind(put("no", PutCond::IfAbsent)), unmet);
    let second = put("second", PutCond::IfMatch(first.clone())).expect("current");
    assert_eq!(kind(put("no", PutCond::IfMatch(first.clone()))), unmet);
    assert_eq!(text(store, &key).as_deref(), Some("second"));
    let read = store.get(&key).expect("get").expect("there").etag;
    assert_eq!(read, second);
    put("third", PutCond::IfMatch(read)).expect("the etag of a get is as good as that of a put");
    store.delete(&key).expect("delete");
    assert_eq!(kind(put("no", PutCond::IfMatch(second))), unmet);
    put("again", PutCond::IfAbsent).expect("absent again");
    assert_eq!(text(store, &key).as_deref(), Some("again"));
}

fn etags_change_with_every_version(store: &dyn ObjectStore, area: &str) {
    let key = format!("{area}/x");
    let mut seen = std::collections::HashSet::new();
    for n in 0..20 {
        assert!(seen.insert(put(store, &key, &format!("version {n}"))), "version {n} has an old etag");
    }
}

fn odd_keys_are_kept(store: &dyn ObjectStore, area: &str) {
    let odd = ["a b", "a+b", "a%20b", "ä€𝄞", "a'\"()&=?#;:@$,!*~^[]{}|\\<>`", ".hidden", "..dots", "-dash"];
    for name in odd {
        put(store, &format!("{area}/{name}"), name);
    }
    let listed: Vec<String> =
        store.list(&format!("{area}/"), None).expect("list").into_iter().map(|info| info.key).collect();
    let mut want: Vec<String> = odd.iter().map(|name| format!("{area}/{name}")).collect();
    want.sort_unstable();
    assert_eq!(listed, want);
    for name in odd {
        let key = format!("{area}/{name}");
        assert_eq!(text(store, &key).as_deref(), Some(name));
        assert_eq!(store.get_range(&key, 0, 1).expect("range").len(), 1);
        store.delete(&key).expect("delete");
    }
    assert!(store.list(&format!("{area}/"), None).expect("list").is_empty());
}

fn listings_are_whole_sorted_and_resumable(store: &dyn ObjectStore, area: &str) {
    let names = ["a", "a-b", "a.d/x", "a0", "b/c", "b/c-d/e", "b/c.d", "b/d/e/f", "bb", "c"];
    for name in names {
        put(store, &format!("{area}/{name}"), name);
    }
    let list = |prefix: &str, after: Option<&str>| -> Vec<String> {
        let after = after.map(|after| format!("{area}/{after}"));
        let prefix = format!("{area}/{prefix}");
        let found = store.list(&prefix, after.as_deref()).expect("list");
        for info in &found {
            assert_eq!(info.size as usize, info.key.len() - area.len() - 1);
        }
        found.into_iter().map(|info| info.key[area.len() + 1..].to_owned()).collect()
    };
    assert_eq!(list("", None), names);
    for (n, after) in names.iter().enumerate() {
        assert_eq!(list("", Some(after)), names[n + 1..], "after {after}");
    }
    assert_eq!(list("b/", None), ["b/c", "b/c-d/e", "b/c.d", "b/d/e/f"]);
    assert_eq!(list("b/c", None), ["b/c", "b/c-d/e", "b/c.d"]);
    assert_eq!(list("b", None), ["b/c", "b/c-d/e", "b/c.d", "b/d/e/f", "bb"]);
    assert_eq!(list("b/", Some("a")), ["b/c", "b/c-d/e", "b/c.d", "b/d/e/f"]);
    assert_eq!(list("b/", Some("b/c-z")), ["b/c.d", "b/d/e/f"]);
    assert_eq!(list("b/", Some("c")), Vec::<String>::new());
    assert_eq!(list("nothing", None), Vec::<String>::new());
    assert_eq!(list("a", None), ["a", "a-b", "a.d/x", "a0"]);
}

fn files_of_any_size_are_put(store: &dyn ObjectStore, area: &str) {
    let dir = tempfile::tempdir().expect("temporary directory");
    // The largest is more than one part of a multipart upload, and not a whole number
    // of them.
    for size in [0, 1, 100_000, 19 * 1024 * 1024 + 7] {
        let body: Vec<u8> = (0..size).map(|n: usize| (n.wrapping_mul(2_654_435_761) >> 16) as u8).collect();
        let path = dir.path().join("file");
        std::fs::write(&path, &body).expect("write");
        let key = format!("{area}/{size}");
        store.put_file(&key, &path).expect("put file");
        store.put_file(&key, &path).expect("over what is there");
        assert_eq!(store.head(&key).expect("head").expect("there").size, size as u64);
        assert!(store.get(&key).expect("get").expect("there").body == body, "content of {size} bytes");
        let tail = store.get_range(&key, size as u64 / 2, u64::MAX).expect("range");
        assert!(tail == body[size / 2..]);
        store.delete(&key).expect("delete");
    }
    let missing = store.put_file(&format!("{area}/x"), &dir.path().join("missing"));
    assert_eq!(kind(missing), Some(ObjectErrorKind::Local));
}

fn bad_keys_are_refused(store: &dyn ObjectStore) {
    for key in ["", "/a", "a/", "a//b", ".", "a/../b", "a\0b", "a\nb", &"x".repeat(901)] {
        let unsupported = Some(ObjectErrorKind::Unsupported);
        assert_eq!(kind(store.get(key)), unsupported, "{key:?}");
        assert_eq!(kind(store.put(key, Bytes::new(), PutCond::Always)), unsupported, "{key:?}");
        assert_eq!(kind(store.delete(key)), unsupported, "{key:?}");
    }
}

fn what_one_puts_the_other_sees(one: &dyn ObjectStore, other: &dyn ObjectStore, area: &str) {
    let key = format!("{area}/x");
    for n in 0..5 {
        let etag = put(one, &key, &format!("{n}"));
        assert_eq!(text(other, &key), Some(format!("{n}")));
        assert_eq!(other.list(&format!("{area}/"), None).expect("list").len(), 1);
        other.put(&key, Bytes::from_static(b"other"), PutCond::IfMatch(etag)).expect("same etags");
        assert_eq!(text(one, &key).as_deref(), Some("other"));
    }
    other.delete(&key).expect("delete");
    assert!(one.get(&key).expect("get").is_none());
}

/// Runs `act` in `effort.threads` threads at once, half of them on the other store.
fn race<T: Send>(
    store: &Arc<dyn ObjectStore>,
    other: &Arc<dyn ObjectStore>,
    effort: Effort,
    act: impl Fn(usize, &dyn ObjectStore) -> T + Sync,
) -> Vec<T> {
    let barrier = Barrier::new(effort.threads);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..effort.threads)
            .map(|n| {
                let (barrier, act) = (&barrier, &act);
                let store = if n % 2 == 0 { store } else { other };
                scope.spawn(move || {
                    barrier.wait();
                    act(n, &**store)
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().expect("a racing thread")).collect()
    })
}

/// Of a race's results, the one that won; the others must have failed on the condition.
fn winner(results: &[Result<Etag, ObjectError>], what: &str) -> usize {
    let winners: Vec<usize> =
        results.iter().enumerate().filter(|(_, result)| result.is_ok()).map(|(n, _)| n).collect();
    for result in results {
        if let Err(error) = result {
            assert_eq!(error.kind, ObjectErrorKind::Precondition, "{what}: {error}");
        }
    }
    assert_eq!(winners.len(), 1, "{what}: winners {winners:?}");
    winners[0]
}

fn one_of_many_creates_wins(
    store: &Arc<dyn ObjectStore>,
    other: &Arc<dyn ObjectStore>,
    area: &str,
    effort: Effort,
) {
    for round in 0..effort.rounds {
        let key = format!("{area}/{round}");
        let results = race(store, other, effort, |n, store| {
            store.put(&key, Bytes::from(format!("by {n}")), PutCond::IfAbsent)
        });
        let won = winner(&results, &key);
        assert_eq!(text(&**store, &key), Some(format!("by {won}")));
    }
}

fn one_of_many_swaps_wins(
    store: &Arc<dyn ObjectStore>,
    other: &Arc<dyn ObjectStore>,
    area: &str,
    effort: Effort,
) {
    let key = format!("{area}/x");
    let mut etag = put(&**store, &key, "start");
    for round in 0..effort.rounds {
        let results = race(store, other, effort, |n, store| {
            store.put(&key, Bytes::from(format!("{round} by {n}")), PutCond::IfMatch(etag.clone()))
        });
        let won = winner(&results, &format!("{key} round {round}"));
        assert_eq!(text(&**store, &key), Some(format!("{round} by {won}")));
        etag = results[won].clone().expect("the winner");
    }
}

fn no_swap_is_lost(store: &Arc<dyn ObjectStore>, other: &Arc<dyn ObjectStore>, area: &str, effort: Effort) {
    let key = format!("{area}/x");
    put(&**store, &key, "0 start");
    let each = effort.rounds.min(10);
    race(store, other, effort, |n, store| {
        let mut done = 0;
        while done < each {
            let object = store.get(&key).expect("get").expect("there");
            let body = String::from_utf8(object.body.to_vec()).expect("text");
            let count: u64 = body.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
            let next = format!("{} by {n}", count + 1);
            match store.put(&key, Bytes::from(next), PutCond::IfMatch(object.etag)) {
                Ok(_) => done += 1,
                Err(error) => assert_eq!(error.kind, ObjectErrorKind::Precondition, "{error}"),
            }
        }
    });
    let count = text(&**store, &key).expect("there");
    assert_eq!(count.split(' ').next(), Some((effort.threads * each).to_string().as_str()));
}

fn readers_never_see_half_an_object(
    store: &Arc<dyn ObjectStore>,
    other: &Arc<dyn ObjectStore>,
    area: &str,
    effort: Effort,
) {
    let key = format!("{area}/x");
    let body = |n: usize| Bytes::from(vec![b'a' + n as u8; 50_000 + n * 10_000]);
    store.put(&key, body(0), PutCond::Always).expect("put");
    let effort = Effort { threads: effort.threads.min(4), rounds: effort.rounds };
    race(store, other, effort, |n, store| {
        for round in 0..effort.rounds {
            if n < effort.threads / 2 {
                store.put(&key, body(round % 16), PutCond::Always).expect("put");
            } else {
                let seen = store.get(&key).expect("get").expect("there").body;
                let first = usize::from(seen[0] - b'a');
                assert!(seen == body(first), "{} bytes of version {first}", seen.len());
            }
        }
    });
}
