//! A primary's store and a replica's, with a stream between them over a real socket and
//! no mount: what is committed there is soon here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::db::{Goal, LogError};
use crate::node::feed::{Feeds, Setup};
use crate::peer::testing::{Fake, OpenFeed};
use crate::peer::wire::Welcome;
use crate::peer::{Server, ServerOptions, ServiceError, serve};
use crate::store::{LogRetention, Role, StoreOptions};
use crate::words::{
    Checksum, ClusterId, Epoch, Faults, NodeId, PageSize, PageSum, Pgno, SystemClock, Timestamp,
};

const PATIENCE: Duration = Duration::from_secs(60);
const PACE: Pace = Pace { beat: Duration::from_millis(20), deadline: PATIENCE };

fn db(name: &str) -> DbName {
    DbName::new(name).expect("a name")
}

fn open(dir: &tempfile::TempDir, node: u64) -> Arc<Store> {
    let options = StoreOptions {
        dir: dir.path().to_owned(),
        boot_id: "this boot".to_owned(),
        new_node: NodeId::new(node),
        clock: Arc::new(SystemClock),
        faults: Faults::none(),
    };
    let store = Store::open(options).unwrap_or_else(|error| panic!("open a store: {error}"));
    std::fs::create_dir_all(dir.path().join("spool")).expect("a directory");
    Arc::new(store)
}

/// A store to which the test commits.
struct Primary {
    store: Arc<Store>,
    feeds: Feeds,
    archived: Arc<Mutex<Vec<(DbName, Pos)>>>,
    contents: HashMap<DbName, BTreeMap<Pgno, Vec<u8>>>,
    server: Option<Server>,
    _dir: tempfile::TempDir,
}

impl Primary {
    fn new() -> Primary {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(&dir, 1);
        store.set_role(Role::Primary);
        let archived: Arc<Mutex<Vec<(DbName, Pos)>>> = Arc::default();
        let known = Arc::clone(&archived);
        let feeds = Feeds::new(Setup {
            store: Arc::clone(&store),
            clock: Arc::new(SystemClock),
            welcome: Welcome {
                cluster: ClusterId::new(7),
                node: NodeId::new(1),
                hostname: "here".to_owned(),
                epoch: Epoch::new(3),
            },
            archived: Box::new(move || known.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        });
        let opening = feeds.clone();
        let feed: OpenFeed = Box::new(move |hello, positions| {
            opening.open(hello.clone(), positions).map(|replica| replica as _).map_err(ServiceError::Failed)
        });
        let loopback: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let options = ServerOptions { pace: PACE, ..ServerOptions::new(loopback, None) };
        let fake = Arc::new(Fake { feed: Some(feed), ..Fake::default() });
        let server = Some(serve(options, fake).expect("serve"));
        Primary { store, feeds, archived, contents: HashMap::new(), server, _dir: dir }
    }

    fn url(&self) -> String {
        format!("http://{}", self.server.as_ref().expect("it serves").addr())
    }

    /// A transaction that writes these pages and leaves the database so many pages.
    fn commit(&mut self, name: &str, page_size: u32, pages: &[(u32, u8)], commit: u32) -> Pos {
        let database = self.store.entry(&db(name)).expect("an entry");
        let (pre, page_size) = (database.pos(), PageSize::new(page_size).expect("a page size"));
        let content = self.contents.entry(db(name)).or_default();
        let other_size = content.values().next().is_some_and(|page| page.len() != page_size.len());
        if other_size {
            content.clear();
        }
        content.retain(|pgno, _| pgno.get() <= commit);
        let number = |pgno: u32| Pgno::new(pgno).expect("not zero");
        for (pgno, byte) in pages {
            // Sound to nobody, and nobody reads it: capture and apply do not care.
            content.insert(number(*pgno), vec![*byte; page_size.len()]);
        }
        let sum =
            content.iter().fold(Checksum::EMPTY, |sum, (pgno, page)| sum.toggle(PageSum::of(*pgno, page)));
        let post = Pos { txid: pre.txid.next(), checksum: sum };
        let goal = Goal { pos: post, page_size, pages: commit };
        let live = database.apply_live(pre, goal, Timestamp::from_millis(1000)).expect("begin");
        for (pgno, _) in pages {
            let (pgno, page) = (number(*pgno), &content[&number(*pgno)]);
            live.page(pgno, page, PageSum::of(pgno, page)).expect("a page");
        }
        live.finish(PATIENCE).unwrap_or_else(|error| panic!("commit: {error}"));
        self.store.news().tell();
        post
    }

    /// The archive has everything now; the log keeps only what it has to.
    fn archive(&self) {
        let all = self.store.all();
        let positions = all.iter().map(|database| (database.name().clone(), database.pos())).collect();
        *self.archived.lock().expect("no panic") = positions;
        self.store.commits().published();
    }
}

/// A store that follows.
struct Replica {
    store: Arc<Store>,
    cancel: CancellationToken,
    thread: Option<JoinHandle<String>>,
    applied: Arc<AtomicUsize>,
    settled: Arc<AtomicUsize>,
    dir: tempfile::TempDir,
}

/// Settles by doing what the test says.
struct Settling {
    how: Box<dyn FnMut() + Send>,
    applied: Arc<AtomicUsize>,
    settled: Arc<AtomicUsize>,
}

impl Follower for Settling {
    type Error = LogError;

    fn settle(&mut self, _: &BTreeSet<DbName>) -> Result<(), LogError> {
        (self.how)();
        self.settled.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn applied(&mut self, _: &ChangeHead) {
        self.applied.fetch_add(1, Ordering::Release);
    }

    fn archived(&mut self) {}
}

impl Replica {
    fn new() -> Replica {
        let dir = tempfile::tempdir().expect("a directory");
        Replica {
            store: open(&dir, 2),
            cancel: CancellationToken::new(),
            thread: None,
            applied: Arc::default(),
            settled: Arc::default(),
            dir,
        }
    }

    fn follow(&mut self, url: String, how: impl FnMut() + Send + 'static) {
        self.cancel = CancellationToken::new();
        let live = Live::new(Arc::clone(&self.store), Arc::new(SystemClock), PATIENCE);
        let live = live.expect("a client");
        let (applied, settled) = (Arc::clone(&self.applied), Arc::clone(&self.settled));
        let mut settling = Settling { how: Box::new(how), applied, settled };
        let hello = Hello { cluster: ClusterId::new(7), node: NodeId::new(2), hostname: "there".to_owned() };
        let cancel = self.cancel.clone();
        let lead = Lead { url, token: None, hello, pace: PACE };
        self.thread =
            Some(std::thread::spawn(move || live.follow(&lead, &cancel, &mut settling).1.to_string()));
    }

    /// Why it ended.
    fn ended(&mut self) -> String {
        self.thread.take().expect("it follows").join().expect("no panic")
    }

    fn stop(&mut self) {
        self.cancel.cancel();
        let why = self.ended();
        assert!(why.contains("not wanted"), "{why}");
    }

    fn wait_for(&self, name: &str, pos: Pos) {
        let since = Instant::now();
        while self.store.known(&db(name)).map(|database| database.pos()) != Some(pos) {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(since.elapsed() < PATIENCE && !ended, "{name} does not come to {pos}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// So many change sets are applied, each once: it is told after the position shows.
    fn wait_applied(&self, count: usize) {
        let since = Instant::now();
        while self.applied.load(Ordering::Acquire) < count {
            assert!(since.elapsed() < PATIENCE, "not {count} are applied");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(self.applied.load(Ordering::Acquire), count, "each once");
    }
}

fn same(primary: &Primary, replica: &Replica) {
    for database in primary.store.all() {
        let other = replica.store.known(database.name()).expect("it is there, too");
        assert_eq!((database.pos(), database.exists()), (other.pos(), other.exists()), "{}", database.name());
        let image = other.image(replica.dir.path()).expect("a copy");
        let mut bytes = Vec::new();
        if let Some(image) = image {
            bytes.resize(image.file.metadata().expect("stat").len() as usize, 0);
            image.file.read_exact_at(&mut bytes, 0).expect("read");
        }
        let content = primary.contents.get(database.name()).map(|pages| pages.values().flatten().copied());
        let expected: Vec<u8> = content.into_iter().flatten().collect();
        assert!(bytes == expected, "bytes of {}", database.name());
    }
}

fn never() -> impl FnMut() + Send {
    || panic!("nothing is to be settled")
}

#[test]
fn a_new_replica_gets_everything_in_the_order_of_the_commits() {
    let mut primary = Primary::new();
    primary.commit("a", 4096, &[(1, 1), (2, 2), (3, 3)], 3);
    primary.commit("t/b", 512, &[(1, 9)], 1);
    primary.commit("a", 4096, &[(2, 4)], 2);
    let mut replica = Replica::new();
    replica.follow(primary.url(), never());
    // And what is committed while it listens: other page sizes, drops, names that come
    // back, and a change set of many pages.
    primary.commit("a", 512, &[(1, 5), (2, 6)], 2);
    primary.commit("t/b", 512, &[], 0);
    primary.commit("c", 65536, &(1..400).map(|pgno| (pgno, pgno as u8)).collect::<Vec<_>>(), 399);
    let a = primary.commit("a", 512, &[(3, 7)], 3);
    replica.wait_for("a", a);
    let b = primary.commit("t/b", 1024, &[(1, 8)], 1);
    replica.wait_for("t/b", b);
    same(&primary, &replica);
    replica.wait_applied(8);
    replica.stop();
}

#[test]
fn a_replica_that_comes_back_gets_what_it_lacks() {
    let mut primary = Primary::new();
    let mut replica = Replica::new();
    replica.follow(primary.url(), never());
    for round in 0..20u8 {
        let pos = primary.commit("a", 512, &[(1, round), (2, round)], 2);
        primary.commit("b", 512, &[(1, round)], 1);
        if round % 5 == 4 {
            replica.wait_for("a", pos);
            replica.stop();
            replica.follow(primary.url(), never());
        }
    }
    let last = primary.commit("b", 512, &[(1, 77)], 1);
    replica.wait_for("b", last);
    same(&primary, &replica);
    replica.wait_applied(41);
    replica.stop();
}

/// Gives the replica's database the primary's content, as an archive would.
fn restore(primary: &Primary, replica: &Store, name: &str) -> impl FnMut() + Send + use<> {
    let content: Vec<(Pgno, Vec<u8>)> =
        primary.contents[&db(name)].iter().map(|(pgno, page)| (*pgno, page.clone())).collect();
    let database = primary.store.known(&db(name)).expect("it is there");
    let (shape, pos) = (database.shape(), database.pos());
    let entry = replica.entry(&db(name)).expect("an entry");
    move || {
        let goal = Goal { pos, page_size: shape.0.expect("a page size"), pages: shape.1 };
        let incoming = entry.install(goal).expect("install");
        for (pgno, page) in &content {
            incoming.page(*pgno, page, PageSum::of(*pgno, page)).expect("a page");
        }
        incoming.finish().expect("finish");
    }
}

#[test]
fn what_the_log_does_not_have_is_settled_with_the_archive_and_then_goes_on() {
    let mut primary = Primary::new();
    // Below what goes into files of their own, and more than a file of the log has.
    for round in 0..8u8 {
        primary.commit("a", 65536, &(1..200).map(|pgno| (pgno, round)).collect::<Vec<_>>(), 199);
    }
    primary.commit("b", 512, &[(1, 1)], 1);
    primary.archive();
    primary.store.checkpoint().expect("checkpoint");
    let none = LogRetention { age: Duration::ZERO, size: Some(0) };
    primary.store.keep_log(none).expect("keep the log");
    assert!(primary.store.log().files()[0].0 > 1, "the beginning of the log is gone");
    let mut replica = Replica::new();
    let how = restore(&primary, &replica.store, "a");
    replica.follow(primary.url(), how);
    let since = Instant::now();
    while replica.settled.load(Ordering::Acquire) == 0 {
        assert!(since.elapsed() < PATIENCE, "nothing is settled");
        primary.commit("b", 512, &[(1, 2)], 1);
    }
    let a = primary.commit("a", 65536, &[(5, 5)], 199);
    replica.wait_for("a", a);
    let b = primary.commit("b", 512, &[(1, 3)], 1);
    replica.wait_for("b", b);
    same(&primary, &replica);
    replica.stop();
}

#[test]
fn a_branch_that_the_primary_does_not_know_is_never_continued() {
    let mut primary = Primary::new();
    primary.commit("a", 512, &[(1, 1)], 1);
    let mut other = Primary::new();
    other.commit("a", 512, &[(1, 1)], 1);
    other.commit("a", 512, &[(1, 2)], 1);
    let branch = other.commit("a", 512, &[(1, 3)], 1);
    other.commit("only here", 512, &[(1, 3)], 1);
    let mut replica = Replica::new();
    replica.follow(other.url(), never());
    replica.wait_for("a", branch);
    while replica.store.known(&db("only here")).is_none_or(|database| database.pos() == Pos::ZERO) {
        std::thread::yield_now();
    }
    replica.stop();
    let asked = Arc::new(AtomicUsize::new(0));
    let asking = Arc::clone(&asked);
    replica.follow(primary.url(), move || {
        asking.fetch_add(1, Ordering::AcqRel);
    });
    primary.commit("a", 512, &[(1, 4)], 1);
    primary.commit("a", 512, &[(1, 5)], 1);
    let b = primary.commit("b", 512, &[(1, 5)], 1);
    replica.wait_for("b", b);
    let since = Instant::now();
    while asked.load(Ordering::Acquire) < 2 {
        assert!(since.elapsed() < PATIENCE, "the archive is asked, and asked again");
        std::thread::yield_now();
    }
    assert_eq!(replica.store.known(&db("a")).map(|database| database.pos()), Some(branch));
    replica.stop();
}

#[test]
fn a_replica_says_where_it_stands_and_endings_come_after_the_last_commit() {
    let mut primary = Primary::new();
    primary.commit("a", 512, &[(1, 1)], 1);
    let mut replica = Replica::new();
    replica.follow(primary.url(), never());
    let since = Instant::now();
    let peer = loop {
        assert!(since.elapsed() < PATIENCE, "nobody listens");
        if let Some(peer) = primary.feeds.replica(NodeId::new(2)) {
            break peer;
        }
    };
    let last = primary.commit("a", 512, &[(1, 2)], 1);
    assert!(peer.wait_caught_up(PATIENCE));
    assert_eq!(replica.store.known(&db("a")).map(|database| database.pos()), Some(last));
    let last = primary.commit("a", 512, &[(1, 3)], 1);
    peer.end(Ending::Handoff);
    assert!(replica.ended().contains("hands the lease over"));
    assert_eq!(replica.store.known(&db("a")).map(|database| database.pos()), Some(last));
    assert!(!peer.wait_caught_up(Duration::ZERO) || primary.feeds.replicas().is_empty());
    // Nobody is told anything by a node that is not the primary.
    replica.follow(primary.url(), never());
    let last = primary.commit("a", 512, &[(1, 4)], 1);
    replica.wait_for("a", last);
    primary.feeds.end(Ending::NotPrimary);
    assert!(replica.ended().contains("not the primary any more"));
}

#[test]
fn a_second_stream_of_a_node_ends_the_first() {
    let mut primary = Primary::new();
    let mut first = Replica::new();
    first.follow(primary.url(), never());
    let pos = primary.commit("a", 512, &[(1, 1)], 1);
    first.wait_for("a", pos);
    let mut second = Replica::new();
    second.follow(primary.url(), never());
    assert!(first.ended().contains("another stream"));
    let pos = primary.commit("a", 512, &[(1, 2)], 1);
    second.wait_for("a", pos);
    second.stop();
}

#[test]
fn lag_is_small_while_the_stream_lives_and_grows_afterwards() {
    let mut primary = Primary::new();
    let mut replica = Replica::new();
    assert_eq!(replica.store.lag(), None);
    replica.follow(primary.url(), never());
    let pos = primary.commit("a", 512, &[(1, 1)], 1);
    replica.wait_for("a", pos);
    let since = Instant::now();
    while replica.store.lag().is_none_or(|lag| lag > Duration::from_secs(5)) {
        assert!(since.elapsed() < PATIENCE, "no lag is known");
    }
    replica.stop();
    let before = replica.store.lag().expect("known");
    std::thread::sleep(Duration::from_millis(20));
    assert!(replica.store.lag().expect("known") > before);
}

#[test]
fn what_the_archive_has_is_taken_in_together_and_never_across_its_head() {
    let mut primary = Primary::new();
    let rounds = |primary: &mut Primary, rounds: std::ops::Range<u32>| {
        rounds.fold(Pos::ZERO, |_, round| {
            let page = round % 4 + 1;
            primary.commit("b", 512, &[(1, round as u8)], 1);
            primary.commit("a", 512, &[(1, round as u8), (page, round as u8)], 4.min(round + 1))
        })
    };
    let head = rounds(&mut primary, 0..150);
    primary.archive();
    let last = rounds(&mut primary, 150..175);
    let mut replica = Replica::new();
    replica.follow(primary.url(), never());
    replica.wait_for("a", last);
    same(&primary, &replica);
    replica.stop();
    replica.wait_applied(350);
    assert_eq!(replica.store.commits().unpublished(), 50, "what the archive lacks is kept for it");
    let log = replica.store.log();
    let (mut reader, mut records) = (log.reader(crate::db::Place { file: 1, offset: 0 }), 0);
    while let Some(change) = reader.next(log.end()).expect("sound") {
        let meta = &change.meta;
        let beyond = meta.post.txid > head.txid;
        assert!(!beyond || meta.post.txid == meta.pre.txid.next(), "from {} to {}", meta.pre, meta.post);
        records += 1;
    }
    println!("{records} applies of 350 change sets");
    assert!(records <= 350);
}

#[test]
fn a_primary_says_that_it_lives_while_it_looks_through_a_long_log() {
    use crate::peer::stream::{Feed, Item};
    let mut primary = Primary::new();
    primary.commit("b", 512, &[(1, 1)], 1);
    let mut a = Pos::ZERO;
    for round in 0..2100u32 {
        a = primary.commit("a", 512, &[(1, round as u8)], 1);
    }
    let hello = Hello { cluster: ClusterId::new(7), node: NodeId::new(2), hostname: "there".to_owned() };
    let replica = primary.feeds.open(hello, vec![(db("a"), a)]).expect("a feed");
    let mut said = Vec::new();
    loop {
        match replica.next(Duration::ZERO).expect("something") {
            Item::Change(change) => said.push(change.head.db.to_string()),
            Item::Busy => said.push("busy".to_owned()),
            Item::Beat(_) => break,
            _ => said.push("something else".to_owned()),
        }
    }
    assert_eq!(said, ["b", "busy", "busy"]);
    replica.close();
}

#[test]
fn what_the_archive_has_is_no_longer_kept_for_it() {
    let mut primary = Primary::new();
    let pos = primary.commit("a", 512, &[(1, 1)], 1);
    let mut replica = Replica::new();
    replica.follow(primary.url(), never());
    replica.wait_for("a", pos);
    primary.archive();
    let since = Instant::now();
    while replica.store.commits().unpublished() > 0 {
        assert!(since.elapsed() < PATIENCE, "it is kept");
        std::thread::yield_now();
    }
    replica.stop();
}
