//! The S3 store where S3 fails: lost replies, refusals, broken answers, odd servers.

#[path = "support/s3_server/mod.rs"]
mod s3_server;

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use litefs::object::{
    KeyPair, Location, MemoryStore, ObjectError, ObjectErrorKind, ObjectStore, Options, PutCond, S3Location,
    S3Store, check_conditions,
};
use litefs::words::Timestamp;
use s3_server::{Quirks, S3Server, Trouble};

const ALWAYS: u64 = u64::MAX;
const MIB: usize = 1 << 20;

fn open(server: &S3Server) -> S3Store {
    S3Store::new(server.place("p")).expect("a store")
}

fn put(store: &S3Store, key: &str, cond: PutCond) -> Result<(), ObjectError> {
    store.put(key, Bytes::from_static(b"body"), cond).map(drop)
}

fn kind<T>(result: Result<T, ObjectError>) -> Option<ObjectErrorKind> {
    result.err().map(|error| error.kind)
}

#[test]
fn a_conditional_put_is_sent_once_and_a_lost_reply_is_reported_as_unknown() {
    let server = S3Server::start();
    let store = open(&server);
    for (n, trouble) in [Trouble::DoThenFail, Trouble::Refuse].into_iter().enumerate() {
        let key = format!("x{n}");
        server.trouble("PutObject", &key, 1, trouble);
        assert_eq!(kind(put(&store, &key, PutCond::IfAbsent)), Some(ObjectErrorKind::Unknown), "{trouble:?}");
        assert_eq!(server.take_requests(), [format!("PutObject p/{key}")]);
    }
    assert!(store.get("x0").expect("get").is_some(), "the deed was done");
    assert!(store.get("x1").expect("get").is_none(), "the deed was not done");
}

#[test]
fn an_unconditional_put_and_a_read_are_sent_again() {
    let server = S3Server::start();
    let store = open(&server);
    server.trouble("PutObject", "x", 1, Trouble::DoThenFail);
    server.trouble("GetObject", "x", 2, Trouble::Refuse);
    server.trouble("ListObjectsV2", "", 1, Trouble::Refuse);
    put(&store, "x", PutCond::Always).expect("the second time");
    assert!(store.get("x").expect("the third time").is_some());
    assert_eq!(store.list("", None).expect("the second time").len(), 1);
    assert_eq!(server.take_requests().len(), 2 + 3 + 2);
}

#[test]
fn a_server_that_stays_overloaded_is_out_of_reach() {
    let server = S3Server::start();
    let store = open(&server);
    server.trouble("GetObject", "", ALWAYS, Trouble::Refuse);
    let error = store.get("x").expect_err("refused");
    assert_eq!(error.kind, ObjectErrorKind::Unreachable);
    assert!(error.why.contains("503"), "{error}");
    assert_eq!(server.take_requests().len(), 4, "retries are bounded");
}

#[test]
fn the_failures_of_one_store_use_up_no_retries_of_another() {
    let server = S3Server::start();
    let (troubled, other) = (open(&server), S3Store::new(server.place("q")).expect("a store"));
    server.trouble("GetObject", "p/", ALWAYS, Trouble::Refuse);
    // Each retry costs a part of a stock (the SDK's token bucket) that is used up by this.
    std::thread::scope(|scope| {
        for _ in 0..60 {
            scope.spawn(|| troubled.get("x").expect_err("refused"));
        }
    });
    let retried = server.take_requests().len();
    assert!(retried < 60 * 4, "{retried} requests: the stock is not used up");
    server.trouble("GetObject", "q/", 3, Trouble::Refuse);
    assert!(other.get("x").expect("the fourth time").is_none());
}

#[test]
fn no_more_than_sixteen_parts_are_read_at_a_time() {
    let server = S3Server::start();
    let store = open(&server);
    put(&store, "x", PutCond::Always).expect("put");
    server.latency(Duration::from_millis(20));
    std::thread::scope(|scope| {
        for _ in 0..60 {
            scope.spawn(|| store.get_range("x", 1, 2).expect("a part"));
        }
    });
    assert!((2..=16).contains(&server.most_reads()), "{} at a time", server.most_reads());
}

#[test]
fn a_slow_listing_holds_up_nothing_else() {
    let server = S3Server::start();
    let store = open(&server);
    server.trouble("ListObjectsV2", "", ALWAYS, Trouble::Hold);
    std::thread::scope(|scope| {
        let list = scope.spawn(|| store.list("", None).expect("late, and whole"));
        while !server.take_requests().iter().any(|request| request.starts_with("List")) {
            std::thread::yield_now();
        }
        put(&store, "x", PutCond::IfAbsent).expect("put");
        assert!(store.get("x").expect("get").is_some());
        assert!(!list.is_finished());
        server.heal();
        assert_eq!(list.join().expect("the listing").len(), 1);
    });
}

#[test]
fn a_conflict_is_tried_again_until_it_is_decided() {
    let server = S3Server::start();
    let store = open(&server);
    server.trouble("PutObject", "", 3, Trouble::Conflict);
    put(&store, "x", PutCond::IfAbsent).expect("after three conflicts");
    server.trouble("PutObject", "", 1, Trouble::Conflict);
    assert_eq!(kind(put(&store, "x", PutCond::IfAbsent)), Some(ObjectErrorKind::Precondition));
    server.trouble("PutObject", "", ALWAYS, Trouble::Conflict);
    assert_eq!(kind(put(&store, "y", PutCond::IfAbsent)), Some(ObjectErrorKind::Unreachable));
}

#[test]
fn an_answer_that_breaks_off_is_asked_for_again() {
    let server = S3Server::start();
    let store = open(&server);
    store.put("x", Bytes::from(vec![7; MIB]), PutCond::Always).expect("put");
    server.trouble("GetObject", "x", 2, Trouble::Truncate);
    assert_eq!(store.get_range("x", 1, u64::MAX).expect("the third time").len(), MIB - 1);
    server.trouble("GetObject", "x", ALWAYS, Trouble::Truncate);
    let error = store.get("x").expect_err("never whole");
    assert_eq!(error.kind, ObjectErrorKind::Unreachable, "{error}");
}

#[test]
fn a_lease_waits_for_no_answer_longer_than_a_sixth_of_its_time_to_live() {
    let server = S3Server::start();
    // Long enough for a loaded machine to open a connection, short enough to wait for.
    let store = S3Store::for_lease(server.place("p"), Duration::from_secs(30)).expect("a store");
    server.trouble("PutObject", "x", 1, Trouble::DoThenHang);
    server.trouble("GetObject", "x", 1, Trouble::Refuse);
    let begin = Instant::now();
    assert_eq!(kind(put(&store, "x", PutCond::IfAbsent)), Some(ObjectErrorKind::Unknown));
    assert!(begin.elapsed() >= Duration::from_secs(5));
    assert_eq!(kind(store.get("x")), Some(ObjectErrorKind::Unreachable), "no retries");
    assert!(store.get("x").expect("get").is_some(), "the deed was done");
    assert_eq!(server.take_requests().len(), 3);
}

#[test]
fn a_refusal_says_what_to_do() {
    let server = S3Server::start();
    let store = open(&server);
    for (code, words) in [
        ("ExpiredToken", "have expired"),
        ("RequestTimeTooSkewed", "clock is off"),
        ("AccessDenied", "grant s3:GetObject"),
        ("AuthorizationHeaderMalformed", "storage.region"),
        ("NotImplemented", "cannot do this"),
    ] {
        server.heal();
        server.trouble("PutObject", "", ALWAYS, Trouble::Deny(code));
        let error = store.put("x", Bytes::new(), PutCond::IfAbsent).expect_err("denied");
        let unsupported = code == "NotImplemented";
        let kind = if unsupported { ObjectErrorKind::Unsupported } else { ObjectErrorKind::Refused };
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.why.contains(words), "{error}");
        assert!(error.attempt.contains("writing object x in s3://test-bucket/p at http://"), "{error}");
    }
}

#[test]
fn a_missing_bucket_and_wrong_credentials_are_named() {
    let server = S3Server::start();
    let nowhere = S3Location { bucket: "no-such-bucket".to_owned(), ..server.place("p") };
    let stranger = KeyPair { id: "someone".to_owned(), secret: "else".to_owned() };
    let forged = KeyPair { id: "test-key".to_owned(), secret: "else".to_owned() };
    for (place, words) in [
        (nowhere, "create the bucket"),
        (S3Location { credentials: Some(stranger), ..server.place("p") }, "check AWS_ACCESS_KEY_ID"),
        (S3Location { credentials: Some(forged), ..server.place("p") }, "check AWS_SECRET_ACCESS_KEY"),
    ] {
        let store = S3Store::new(place).expect("a store");
        let errors = [
            put(&store, "x", PutCond::IfAbsent).expect_err("refused"),
            store.get("x").map(drop).expect_err("refused"),
            store.list("", None).map(drop).expect_err("refused"),
        ];
        for error in errors {
            assert_eq!(error.kind, ObjectErrorKind::Refused, "{error}");
            assert!(error.why.contains(words) && !error.to_string().contains("else"), "{error}");
        }
    }
}

#[test]
fn a_server_that_is_not_there_was_not_reached() {
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("address").port();
    let store = plain_server_store(port);
    let error = put(&store, "x", PutCond::IfAbsent).expect_err("nobody there");
    assert_eq!(error.kind, ObjectErrorKind::Unreachable, "nothing can have been written: {error}");
    assert_eq!(kind(store.get("x")), Some(ObjectErrorKind::Unreachable));
}

fn plain_server_store(port: u16) -> S3Store {
    let url = format!("s3://bucket/p?endpoint=http://127.0.0.1:{port}");
    match Location::parse(&url, &S3Server::options()) {
        Ok(Location::S3(place)) => S3Store::new(place).expect("a store"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_that_is_not_s3_is_told_apart() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let page = "<!doctype html><p>Welcome!</p>";
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", page.len());
            let _ = stream.write_all(format!("{head}{page}").as_bytes());
        }
    });
    let store = plain_server_store(port);
    let error = store.get("x").expect_err("a web page");
    assert!(error.kind == ObjectErrorKind::Refused && error.why.contains("check the endpoint"), "{error}");
    assert!(put(&store, "x", PutCond::IfAbsent).is_err());
    assert!(store.list("", None).is_err());
}

#[test]
fn a_large_upload_survives_the_loss_of_the_last_reply() {
    let server = S3Server::start();
    let store = open(&server);
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; 9 * MIB]).expect("write");
    server.trouble("CompleteMultipartUpload", "x", 1, Trouble::DoThenFail);
    server.trouble("UploadPart", "x", 1, Trouble::Refuse);
    store.put_file("x", &path).expect("in spite of it");
    assert_eq!(store.head("x").expect("head").expect("there").size, 9 * MIB as u64);
    assert_eq!(server.open_uploads(), 0);
}

#[test]
fn a_dated_object_has_its_time_where_litestream_looks_for_it() {
    let server = S3Server::start();
    let store = open(&server);
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("file");
    let made = Timestamp::from_millis(1_700_000_000_123);
    store.put_dated("a", Bytes::new(), PutCond::IfAbsent, made).expect("put");
    for (key, size) in [("b", 1), ("c", 9 * MIB)] {
        std::fs::write(&path, vec![7; size]).expect("write");
        store.put_file_dated(key, &path, made).expect("put file");
    }
    for key in ["p/a", "p/b", "p/c"] {
        let time = server.metadata(key, "litestream-timestamp");
        assert_eq!(time.as_deref(), Some("2023-11-14T22:13:20.123Z"), "{key}");
    }
    put(&store, "d", PutCond::Always).expect("put");
    assert_eq!(server.metadata("p/d", "litestream-timestamp"), None);
}

#[test]
fn an_upload_that_fails_leaves_nothing_behind() {
    let server = S3Server::start();
    let store = open(&server);
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; 9 * MIB]).expect("write");
    server.trouble("UploadPart", "x", ALWAYS, Trouble::Deny("AccessDenied"));
    assert_eq!(kind(store.put_file("x", &path)), Some(ObjectErrorKind::Refused));
    assert!(store.get("x").expect("get").is_none());
    assert_eq!(server.open_uploads(), 0);
}

#[test]
fn uploads_of_the_dead_are_given_up_and_those_of_the_living_are_not() {
    let server = S3Server::start();
    let store = open(&server);
    let hour = Duration::from_secs(3600);
    server.leave_upload("p/dead", hour * 48);
    server.leave_upload("p/living", hour);
    server.leave_upload("elsewhere/dead", hour * 48);
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; 9 * MIB]).expect("write");
    store.put_file("x", &path).expect("put file");
    assert_eq!(server.open_uploads(), 2);
}

#[test]
fn a_large_object_is_read_in_parallel_parts_and_never_as_a_mixture() {
    let server = S3Server::start();
    let store = Arc::new(open(&server));
    let body = |fill: u8| Bytes::from(vec![fill; 20 * MIB]);
    store.put("x", body(1), PutCond::Always).expect("put");
    server.take_requests();
    assert!(store.get("x").expect("get").expect("there").body == body(1));
    assert_eq!(server.take_requests(), ["GetObject p/x"; 3]);
    let writer = Arc::clone(&store);
    let writes = std::thread::spawn(move || {
        for fill in 2..6 {
            writer.put("x", body(fill), PutCond::Always).expect("put");
        }
    });
    for _ in 0..6 {
        match store.get("x") {
            Ok(object) => {
                let seen = object.expect("there").body;
                assert!(seen.len() == 20 * MIB && seen.iter().all(|byte| *byte == seen[0]));
            }
            Err(error) => assert_eq!(error.kind, ObjectErrorKind::Unreachable, "{error}"),
        }
    }
    writes.join().expect("writes");
}

#[test]
fn a_listing_of_thousands_comes_in_pages() {
    let server = S3Server::start();
    let store = open(&server);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for n in (thread..2100).step_by(8) {
                    store.put(&format!("k/{n:05}"), Bytes::new(), PutCond::Always).expect("put");
                }
            });
        }
    });
    server.take_requests();
    let keys: Vec<String> = store.list("k/", None).expect("list").into_iter().map(|info| info.key).collect();
    assert_eq!(keys, (0..2100).map(|n| format!("k/{n:05}")).collect::<Vec<_>>());
    assert_eq!(server.take_requests().len(), 3);
    assert_eq!(store.list("k/", Some("k/02097")).expect("list").len(), 2);
    assert_eq!(server.take_requests().len(), 1);
}

#[test]
fn a_store_can_be_used_and_dropped_within_async_code() {
    let server = S3Server::start();
    let store = open(&server);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async move {
        put(&store, "x", PutCond::Always).expect("put");
        drop(store);
    });
}

#[test]
fn missing_credentials_are_refused_soon_with_the_places_looked_at() {
    // The chain reads the process's environment, so this runs in a process of its own.
    const CHILD: &str = "LITEFS_TEST_NO_CREDENTIALS";
    if std::env::var_os(CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this program"));
        child.args(["--exact", "missing_credentials_are_refused_soon_with_the_places_looked_at"]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                child.env_remove(name);
            }
        }
        // A closed port answers for the instance metadata service.
        child.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1/").env("HOME", "/nonexistent");
        assert!(child.env(CHILD, "1").status().expect("run").success());
        return;
    }
    let begin = Instant::now();
    let store = Location::parse("s3://bucket", &Options::default()).expect("a URL").open().expect("a store");
    let error = store.get("x").expect_err("no credentials");
    assert_eq!(error.kind, ObjectErrorKind::Refused);
    for words in ["AWS_ACCESS_KEY_ID", "~/.aws/credentials", "role"] {
        assert!(error.why.contains(words), "{error}");
    }
    assert!(begin.elapsed() < Duration::from_secs(30), "found out after {:?}", begin.elapsed());
}

fn probed(server: &S3Server, quirks: Quirks) -> Result<(), ObjectError> {
    server.quirks(quirks);
    let store: Arc<dyn ObjectStore> = Arc::new(open(server));
    check_conditions(&store)
}

#[test]
fn a_store_that_keeps_conditions_passes_the_probe_and_later_a_short_one() {
    let server = S3Server::start();
    probed(&server, Quirks::default()).expect("safe");
    assert!(server.take_requests().len() > 50);
    probed(&server, Quirks::default()).expect("safe");
    assert!(server.take_requests().len() < 10);
    let left = open(&server).list("", None).expect("list");
    assert_eq!(left.iter().map(|info| info.key.as_str()).collect::<Vec<_>>(), [".probe.json"]);
    let stripped = Quirks { unquoted_etags: true, ..Quirks::default() };
    probed(&S3Server::start(), stripped).expect("safe, once the quotes are off");
    let memory: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
    check_conditions(&memory).expect("safe");
}

#[test]
fn a_store_that_ignores_or_refuses_conditions_fails_the_probe() {
    let ignores = Quirks { ignores_conditions: true, ..Quirks::default() };
    let refuses = Quirks { refuses_conditions: true, ..Quirks::default() };
    for (quirks, words) in [(ignores, "If-None-Match is ignored"), (refuses, "501")] {
        let server = S3Server::start();
        let error = probed(&server, quirks).expect_err("unsafe");
        assert_eq!(error.kind, ObjectErrorKind::Unsupported);
        assert!(error.why.contains(words) && error.why.contains("static"), "{error}");
        assert!(open(&server).list("", None).expect("list").is_empty());
    }
}
