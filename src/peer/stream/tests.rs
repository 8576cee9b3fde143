//! Both halves of a stream over a real socket; the primary's change sets are made up.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::peer::server::{Server, ServerOptions, serve};
use crate::peer::testing::{Fake, OpenFeed};
use crate::peer::wire::{Beat, ChangeHead, Decoder, Down, Ending, Hello, MAX_DATA, Message, Up, Welcome};
use crate::words::{Checksum, ClusterId, DbName, Epoch, NodeId, PageSize, Pos, Timestamp, Txid};

const PATIENCE: Duration = Duration::from_secs(60);
/// Beats that come often enough, and silence that is noticed soon enough, for a test.
const QUICK: Pace = Pace { beat: Duration::from_millis(20), deadline: Duration::from_millis(1500) };

fn pos(txid: u64) -> Pos {
    Pos { txid: Txid::new(txid), checksum: Checksum::from_stored(1 << 63 | txid).expect("bit 63 is set") }
}

fn db(name: &str) -> DbName {
    DbName::new(name).expect("a name")
}

fn hello() -> Hello {
    Hello { cluster: ClusterId::new(7), node: NodeId::new(2), hostname: "there".to_owned() }
}

fn head(name: &str, txid: u64) -> ChangeHead {
    ChangeHead {
        db: db(name),
        pre: pos(txid - 1),
        post: pos(txid),
        page_size: PageSize::new(4096).expect("a page size"),
        commit: 3,
        pages: 1,
        timestamp: Timestamp::from_millis(txid as i64),
    }
}

/// A feed that says what it was given, and then beats.
#[derive(Default)]
struct Script {
    items: Mutex<VecDeque<Item>>,
    given: Condvar,
    at: Mutex<Vec<(DbName, Pos)>>,
    /// Says nothing, not even beats.
    mute: bool,
    closed: Mutex<bool>,
    cluster: u64,
}

impl Script {
    fn new(items: impl IntoIterator<Item = Item>) -> Script {
        Script { items: Mutex::new(items.into_iter().collect()), cluster: 7, ..Script::default() }
    }

    fn wait_closed(&self) {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.given.wait_timeout_while(closed, PATIENCE, |closed| !*closed);
        assert!(!ended.unwrap_or_else(PoisonError::into_inner).1.timed_out(), "the stream goes on");
    }
}

impl Feed for Script {
    fn welcome(&self) -> Welcome {
        Welcome {
            cluster: ClusterId::new(self.cluster),
            node: NodeId::new(1),
            hostname: "here".to_owned(),
            epoch: Epoch::new(4),
        }
    }

    fn next(&self, patience: Duration) -> Result<Item, String> {
        if let Some(item) = self.items.lock().expect("no panic").pop_front() {
            return Ok(item);
        }
        let patience = if self.mute { PATIENCE } else { patience };
        let closed = self.closed.lock().expect("no panic");
        let ended = self.given.wait_timeout_while(closed, patience, |closed| !*closed);
        if *ended.expect("no panic").0 {
            return Err("closed".to_owned());
        }
        Ok(Item::Beat(Beat { at: Duration::from_secs(1), wall: Timestamp::from_millis(2) }))
    }

    fn at(&self, positions: Vec<(DbName, Pos)>) {
        self.at.lock().expect("no panic").extend(positions);
    }

    fn close(&self) {
        *self.closed.lock().expect("no panic") = true;
        self.given.notify_all();
    }
}

fn change(name: &str, txid: u64, bytes: Vec<u8>) -> Item {
    let write =
        Box::new(move |to: &mut dyn Write| bytes.chunks(1000).try_for_each(|piece| to.write_all(piece)));
    Item::Change(OutgoingChange { head: head(name, txid), write })
}

fn primary(script: Script, token: Option<&str>, pace: Pace) -> (Server, Arc<Script>, Arc<Fake>) {
    let script = Arc::new(script);
    let feed = Arc::clone(&script);
    let feed: OpenFeed = Box::new(move |_, _| Ok(Arc::clone(&feed) as _));
    let fake = Arc::new(Fake { feed: Some(feed), ..Fake::default() });
    let loopback: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let options = ServerOptions { pace, ..ServerOptions::new(loopback, token.map(str::to_owned)) };
    (serve(options, Arc::clone(&fake) as _).expect("serve"), script, fake)
}

fn follow(addr: SocketAddr, pace: Pace) -> Follow {
    Follow {
        url: format!("http://{addr}/"),
        token: None,
        hello: hello(),
        positions: vec![(db("a"), pos(5))],
        spool: std::env::temp_dir(),
        pace,
    }
}

/// What comes, but for beats.
fn next(following: &mut Following<'_>) -> Result<Received, StreamError> {
    loop {
        match following.receive()? {
            Received::Beat(_) => {}
            other => return Ok(other),
        }
    }
}

#[test]
fn change_sets_cross_in_order_and_unchanged() {
    let large: Vec<u8> = (0..20_000_000u32).map(|at| (at % 251) as u8).collect();
    let (server, script, fake) = primary(
        Script::new([
            change("a", 6, b"six".to_vec()),
            change("b/c", 1, Vec::new()),
            Item::Busy,
            change("a", 7, large.clone()),
            Item::Archived(vec![(db("a"), pos(6))]),
            Item::Settle { db: db("d"), pos: pos(9) },
        ]),
        None,
        QUICK,
    );
    let client = StreamClient::new().expect("a client");
    let cancel = CancellationToken::new();
    let mut following = client.follow(&follow(server.addr(), QUICK), &cancel).expect("a stream");
    assert_eq!(following.welcome().map(|welcome| welcome.epoch), Some(Epoch::new(4)));
    for (name, txid, bytes) in [("a", 6, b"six".to_vec()), ("b/c", 1, Vec::new()), ("a", 7, large)] {
        let Ok(Received::Change(change)) = next(&mut following) else { panic!("a change set") };
        assert_eq!(change.head, head(name, txid));
        let came = match &change.ltx {
            Ltx::Memory(bytes) => bytes.to_vec(),
            Ltx::File(file) => std::fs::read(file.path()).expect("the file"),
        };
        assert!(came == bytes, "{name} {txid}");
    }
    let Ok(Received::Archived(archived)) = next(&mut following) else { panic!("archived positions") };
    assert_eq!(archived, [(db("a"), pos(6))]);
    let Ok(Received::Settle { db: name, pos: at }) = next(&mut following) else { panic!("settle") };
    assert_eq!((name, at), (db("d"), pos(9)));
    // And the other way.
    following.at(vec![(db("a"), pos(7))]).expect("the stream is open");
    let since = Instant::now();
    while script.at.lock().expect("no panic").is_empty() {
        assert!(since.elapsed() < PATIENCE, "the primary does not hear");
        following.receive().expect("a beat");
    }
    assert_eq!(*fake.replicas.lock(), [(hello(), vec![(db("a"), pos(5))])]);
    drop(following);
    script.wait_closed();
}

#[test]
fn an_ending_arrives_and_so_does_a_stop() {
    for ending in [Ending::NotPrimary, Ending::Handoff] {
        let (server, script, _) = primary(Script::new([Item::End(ending)]), None, QUICK);
        let client = StreamClient::new().expect("a client");
        let mut following =
            client.follow(&follow(server.addr(), QUICK), &CancellationToken::new()).expect("a stream");
        assert!(matches!(next(&mut following), Ok(Received::End(found)) if found == ending));
        assert!(matches!(next(&mut following), Err(StreamError::Broken { .. })));
        script.wait_closed();
    }
    let (server, _script, _) = primary(Script::new([]), None, QUICK);
    let client = StreamClient::new().expect("a client");
    let mut following =
        client.follow(&follow(server.addr(), QUICK), &CancellationToken::new()).expect("a stream");
    let stop = std::thread::spawn(move || server.stop(PATIENCE));
    assert!(matches!(next(&mut following), Ok(Received::End(Ending::Stopping))));
    stop.join().expect("no panic");
}

#[test]
fn wrong_tokens_other_clusters_and_no_primaries_are_refused_with_a_reason() {
    let client = StreamClient::new().expect("a client");
    let cancel = CancellationToken::new();
    let refused = |follow: &Follow| client.follow(follow, &cancel).map(drop).expect_err("refused");

    let (server, _, fake) = primary(Script::new([]), Some("s3cret"), QUICK);
    for token in [None, Some("wrong".to_owned())] {
        let follow = Follow { token, ..follow(server.addr(), QUICK) };
        let error = refused(&follow);
        assert!(
            matches!(&error, StreamError::Refused { status: 401, text, .. } if text.contains("token")),
            "{error}"
        );
    }
    assert!(fake.replicas.lock().is_empty(), "nobody asked the node");
    let right = Follow { token: Some("s3cret".to_owned()), ..follow(server.addr(), QUICK) };
    client.follow(&right, &cancel).expect("the right token");

    let (server, _, _) = primary(Script { cluster: 8, ..Script::new([]) }, None, QUICK);
    let error = refused(&follow(server.addr(), QUICK));
    assert!(matches!(error, StreamError::OtherCluster { .. }), "{error}");

    let own = Hello { node: NodeId::new(1), ..hello() };
    let (server, _, _) = primary(Script::new([]), None, QUICK);
    let error = refused(&Follow { hello: own, ..follow(server.addr(), QUICK) });
    assert!(error.to_string().contains("advertise-url"), "{error}");

    let loopback: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let server = serve(ServerOptions::new(loopback, None), Fake::new()).expect("serve");
    let error = refused(&follow(server.addr(), QUICK));
    assert!(
        matches!(&error, StreamError::Refused { status: 503, text, .. } if text.contains("not the primary"))
    );
    let addr = server.addr();
    drop(server);
    assert!(matches!(refused(&follow(addr, QUICK)), StreamError::NoNode { .. }));
    for url in ["", "https://a:1", "nothing"] {
        assert!(matches!(
            refused(&Follow { url: url.to_owned(), ..follow(addr, QUICK) }),
            StreamError::Url { .. }
        ));
    }
}

/// Sends `body` as a stream's beginning; everything that comes back.
fn raw(server: &Server, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.addr()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!(
        "POST /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("send");
    // It may be refused before all of it is read.
    let _ = stream.write_all(body);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

fn bytes_of(frames: &[Up]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.write(&mut bytes));
    bytes
}

#[test]
fn garbage_and_other_versions_are_refused_with_a_reason_and_without_effect() {
    let (server, _, fake) = primary(Script::new([]), None, QUICK);
    let hello = Up::Hello(hello());
    let mut other = bytes_of(&[hello.clone(), Up::Ready]);
    other[10] = 77;
    let mut escaping = bytes_of(&[hello.clone(), Up::At(vec![(db("aabcc"), pos(1))]), Up::Ready]);
    let at = escaping.windows(5).position(|part| part == b"aabcc").expect("the name");
    escaping[at..at + 5].copy_from_slice(b"../cc");
    let long = bytes_of(&vec![Up::At(vec![(db("a"), pos(1)); 60]); 16_000]);
    for (body, code, reason) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "400", "a frame of kind"),
        (vec![0xff; 100_000], "400", "a frame of kind"),
        (other, "409", "version 77"),
        (bytes_of(&[Up::Ready]), "400", "begins with a hello"),
        (bytes_of(&[hello.clone(), hello.clone()]), "400", "begins with positions"),
        (bytes_of(&[hello.clone(), Up::Beat]), "400", "begins with positions"),
        (bytes_of(std::slice::from_ref(&hello)), "400", "ended before it began"),
        (escaping, "400", "damaged"),
        ([bytes_of(&[hello]), long].concat(), "400", "at most"),
        (Vec::new(), "400", "begins with a hello"),
    ] {
        let reply = raw(&server, &body);
        let known = reply.starts_with(&format!("HTTP/1.1 {code} ")) && reply.contains(reason);
        // Of a body that was not read to its end the reply can be lost with the reset
        // (RFC 9293 §3.10.4).
        assert!(known || reply.is_empty() && body.len() > 1 << 20, "{reason}: {reply}");
    }
    assert!(fake.replicas.lock().is_empty(), "nobody asked the node");
    let client = StreamClient::new().expect("a client");
    client.follow(&follow(server.addr(), QUICK), &CancellationToken::new()).expect("the server lives");
}

/// A primary that answers every stream with these bytes and then says nothing.
fn impostor(bytes: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a connection");
        let mut request = [0; 1 << 16];
        let _ = socket.read(&mut request);
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        let _ = socket.write_all(&bytes);
        // Until the other side gives up.
        while let Ok(1..) = socket.read(&mut request) {}
    });
    addr
}

fn down(frames: &[Down]) -> Vec<u8> {
    let welcome = Script::new([]).welcome();
    let mut bytes = Vec::new();
    Down::Welcome(welcome).write(&mut bytes);
    frames.iter().for_each(|frame| frame.write(&mut bytes));
    bytes
}

#[test]
fn garbage_from_a_primary_is_refused() {
    let client = StreamClient::new().expect("a client");
    let begun = Down::Change(head("a", 6));
    let data = Down::Data(vec![1; 10].into());
    let mut other = down(&[]);
    other[10] = 3;
    for (bytes, reason) in [
        (b"hello".to_vec(), "a frame of kind"),
        (other, "version 3"),
        (down(&[])[..20].to_vec(), "nothing came"),
        (down(std::slice::from_ref(&data)), "pages of no change set"),
        (down(&[Down::Done(0)]), "pages of no change set"),
        (down(&[begun.clone(), begun.clone()]), "cut off"),
        (down(&[begun.clone(), Down::End(Ending::Stopping)]), "cut off"),
        (down(&[begun.clone(), data.clone(), Down::Done(11)]), "another length"),
        ([down(&[]), down(&[])].concat(), "begins anew"),
        (down(&[begun, data]), "nothing came"),
    ] {
        let cancel = CancellationToken::new();
        let error = match client.follow(&follow(impostor(bytes), QUICK), &cancel) {
            Ok(mut following) => following.receive().map(|_| ()).expect_err(reason),
            Err(error) => error,
        };
        assert!(error.to_string().contains(reason), "{reason}: {error}");
    }
}

#[test]
fn a_primary_that_says_nothing_is_given_up_within_the_deadline() {
    let (server, _, _) = primary(Script { mute: true, ..Script::new([]) }, None, QUICK);
    let client = StreamClient::new().expect("a client");
    let mut following =
        client.follow(&follow(server.addr(), QUICK), &CancellationToken::new()).expect("a stream");
    let error = following.receive().map(|_| ()).expect_err("silence");
    assert!(error.to_string().contains("nothing came"), "{error}");
}

#[test]
fn a_replica_that_says_nothing_is_given_up_within_the_deadline() {
    let (server, script, _) = primary(Script::new([]), None, QUICK);
    let mut socket = TcpStream::connect(server.addr()).expect("connect");
    let greeting = bytes_of(&[Up::Hello(hello()), Up::Ready]);
    let head = "POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n";
    socket.write_all(head.as_bytes()).expect("send");
    socket.write_all(&greeting).expect("send");
    // The connection stays open, and nothing more is said on it.
    script.wait_closed();
}

#[test]
fn a_replica_that_takes_nothing_costs_a_few_blocks() {
    let count = Arc::new(Mutex::new(0u64));
    let counted = Arc::clone(&count);
    let write = Box::new(move |to: &mut dyn Write| {
        loop {
            to.write_all(&[7; MAX_DATA])?;
            *counted.lock().expect("no panic") += MAX_DATA as u64;
        }
    });
    let endless = Item::Change(OutgoingChange { head: head("a", 6), write });
    let (server, script, _) = primary(Script::new([endless]), None, Pace { deadline: PATIENCE, ..QUICK });
    let client = StreamClient::new().expect("a client");
    let cancel = CancellationToken::new();
    let slow = follow(server.addr(), Pace { deadline: PATIENCE, ..QUICK });
    let following = client.follow(&slow, &cancel).expect("a stream");
    // It comes to a stop by itself.
    let (mut before, since) = (u64::MAX, Instant::now());
    loop {
        let now = *count.lock().expect("no panic");
        if now == before && now > 0 {
            break;
        }
        assert!(since.elapsed() < PATIENCE && now < 64 << 20, "{now} bytes are under way");
        before = now;
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(following);
    script.wait_closed();
}

#[test]
fn cancelling_ends_a_wait() {
    let (server, _, _) = primary(Script::new([]), None, Pace::default());
    let client = StreamClient::new().expect("a client");
    let cancel = CancellationToken::new();
    let mut following = client.follow(&follow(server.addr(), Pace::default()), &cancel).expect("a stream");
    let canceller = cancel.clone();
    let thread = std::thread::spawn(move || canceller.cancel());
    assert!(matches!(next(&mut following), Err(StreamError::Cancelled)));
    thread.join().expect("no panic");
    assert!(matches!(
        client.follow(&follow(server.addr(), QUICK), &cancel).map(drop),
        Err(StreamError::Cancelled)
    ));
}

#[test]
fn the_decoder_keeps_no_more_than_a_frame() {
    let mut decoder = Decoder::new();
    let bytes = down(&[Down::Data(vec![1; MAX_DATA].into())]);
    for piece in bytes.chunks(777) {
        decoder.push(piece);
        while decoder.take_frame::<Down>().expect("sound").is_some() {}
        assert!(decoder.pending() <= MAX_DATA + 5);
    }
}
