//! The server and the client together, over a real socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::client::{Client, ClientError, Timeouts};
use super::events::{Event, PrimaryData};
use super::server::{Server, ServerOptions, serve};
use super::testing::{Fake, info, status};
use crate::words::DbName;

const PATIENCE: Duration = Duration::from_secs(60);

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

fn start(fake: &Arc<Fake>, token: Option<&str>) -> Server {
    serve(ServerOptions::new(loopback(), token.map(str::to_owned)), fake.clone()).expect("serve")
}

fn client(server: &Server, token: Option<&str>) -> Client {
    let url = format!("http://{}", server.addr());
    Client::new(&url, token.map(str::to_owned), Timeouts::default()).expect("a client")
}

fn db(name: &str) -> DbName {
    DbName::new(name).expect("a name")
}

/// Sends `request` as it stands and returns everything until the server closes.
fn raw(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.addr()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("send");
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).expect("a reply");
    String::from_utf8_lossy(&reply).into_owned()
}

fn get(server: &Server, path: &str) -> String {
    raw(server, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
}

#[test]
fn info_and_status_cross_unchanged() {
    let server = start(&Fake::new(), None);
    let client = client(&server, None);
    assert_eq!(client.info().expect("info"), info());
    assert_eq!(client.status().expect("status"), status());
}

#[test]
fn everything_but_health_asks_for_the_token() {
    let server = start(&Fake::new(), Some("s3cret"));
    for path in ["/info", "/status", "/metrics", "/events", "/export?name=a"] {
        assert!(get(&server, path).starts_with("HTTP/1.1 401 "), "{path}");
    }
    assert!(get(&server, "/health").starts_with("HTTP/1.1 200 "));
    for token in [None, Some("wrong")] {
        let refused = client(&server, token).status();
        assert!(matches!(refused, Err(ClientError::Answer { status: 401, .. })), "{refused:?}");
    }
    client(&server, Some("s3cret")).status().expect("the right token");
}

#[test]
fn health_says_why_not() {
    let fake = Fake::new();
    let server = start(&fake, None);
    assert!(get(&server, "/health").starts_with("HTTP/1.1 200 "));
    *fake.not_ready.lock() = Some("restoring".to_owned());
    let reply = get(&server, "/health");
    assert!(reply.starts_with("HTTP/1.1 503 ") && reply.ends_with("restoring\n"), "{reply}");
}

#[test]
fn a_database_goes_in_and_comes_out_the_same() {
    let fake = Fake::new();
    let server = start(&fake, None);
    let client = client(&server, None);
    let mut bytes = b"SQLite".to_vec();
    bytes.extend((0..3_000_000u32).map(|at| (at % 251) as u8));
    let size = bytes.len() as u64;
    let pos = client
        .import(&db("tenants/a b.db"), std::io::Cursor::new(bytes.clone()), size, |_, _| {})
        .expect("import");
    assert_eq!(pos.txid.get(), 1);
    let mut back = Vec::new();
    let mut last = 0;
    client.export(&db("tenants/a b.db"), &mut back, |have, _| last = have).expect("export");
    assert_eq!((back == bytes, last), (true, size));
}

#[test]
fn an_import_that_breaks_off_changes_nothing() {
    let fake = Fake::new();
    let server = start(&fake, None);
    let short = std::io::Cursor::new(b"SQLite and little more".to_vec());
    assert!(client(&server, None).import(&db("a"), short, 1 << 20, |_, _| {}).is_err());
    assert!(fake.databases.lock().is_empty());
}

#[test]
fn refusals_reach_the_client_with_their_reason() {
    let server = start(&Fake::new(), None);
    let client = client(&server, None);
    let said = |error: ClientError| match error {
        ClientError::Answer { status, text, .. } => (status, text),
        other => panic!("{other}"),
    };
    let (status, text) =
        said(client.export(&db("no.db"), &mut std::io::sink(), |_, _| {}).expect_err("none"));
    assert!(status == 404 && text.contains("no.db"), "{status} {text}");
    let junk = vec![1u8; 8 << 20];
    let size = junk.len() as u64;
    let refused = client.import(&db("a"), std::io::Cursor::new(junk), size, |_, _| {});
    let (status, text) = said(refused.expect_err("no database"));
    assert!(status == 400 && text.contains("no database"), "{status} {text}");
    assert_eq!(said(client.promote().expect_err("static")), (409, "the lease is static".to_owned()));
    assert_eq!(said(client.handoff("b/c").expect_err("none")), (503, "no node b/c".to_owned()));
}

#[test]
fn names_that_leave_the_mount_and_wrong_methods_are_refused() {
    let server = start(&Fake::new(), None);
    for (path, code) in [
        ("/export?name=..%2Fetc%2Fpasswd", "400"),
        ("/export?name=%2Fetc%2Fpasswd", "400"),
        ("/export?name=a-wal", "400"),
        ("/export", "400"),
        ("/promote", "405"),
        ("/nothing", "404"),
    ] {
        let reply = get(&server, path);
        assert!(reply.starts_with(&format!("HTTP/1.1 {code} ")), "{path}: {reply}");
    }
}

#[test]
fn oversized_headers_are_refused_and_the_server_lives() {
    let server = start(&Fake::new(), None);
    let mut stream = TcpStream::connect(server.addr()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let request = format!("GET /info HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    // The server may close before it read everything; either end of it is fine.
    let _ = stream.write_all(request.as_bytes());
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    assert!(!reply.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&reply));
    assert!(raw(&server, "garbage\r\n\r\n").starts_with("HTTP/1.1 400 "));
    assert!(get(&server, "/health").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_client_that_sends_no_headers_is_cut_off() {
    let options =
        ServerOptions { header_timeout: Duration::from_millis(50), ..ServerOptions::new(loopback(), None) };
    let server = serve(options, Fake::new()).expect("serve");
    let mut stream = TcpStream::connect(server.addr()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET /info HT").expect("send");
    let mut reply = Vec::new();
    // Ends (closed or reset) rather than running into the read timeout.
    if let Err(error) = stream.read_to_end(&mut reply) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let options = ServerOptions { connections: 1, ..ServerOptions::new(loopback(), None) };
    let server = serve(options, Fake::new()).expect("serve");
    let ask = || {
        let mut stream = TcpStream::connect(server.addr()).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("send");
        stream
    };
    let mut reply = [0; 15];
    let mut first = ask();
    first.read_exact(&mut reply).expect("a reply");
    let mut second = ask();
    second.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let waits = second.read(&mut reply).expect_err("no reply yet").kind();
    assert_eq!(waits, std::io::ErrorKind::WouldBlock);
    drop(first);
    second.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    second.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply, b"HTTP/1.1 200 OK");
}

#[test]
fn events_begin_with_init_and_end_when_the_server_stops() {
    let fake = Fake::new();
    let server = start(&fake, None);
    let mut stream = TcpStream::connect(server.addr()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET /events HTTP/1.0\r\n\r\n").expect("send");
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
    lines.find(String::is_empty).expect("the end of the headers");
    let init: Event = serde_json::from_str(&lines.next().expect("a line")).expect("json");
    assert!(matches!(init, Event::Init { data } if data.is_primary && data.positions.len() == 1));
    let change = Event::PrimaryChange { data: PrimaryData { is_primary: false, hostname: None } };
    fake.events.publish(change.clone());
    let line = lines.next().expect("a line");
    assert_eq!(serde_json::from_str::<Event>(&line).expect("json"), change);
    server.stop(PATIENCE);
    assert_eq!(lines.next(), None);
}

#[test]
fn stopping_cuts_off_a_reply_without_end() {
    let fake = Arc::new(Fake { endless: true, ..Fake::default() });
    let server = start(&fake, None);
    let mut stream = TcpStream::connect(server.addr()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET /export?name=a HTTP/1.1\r\nHost: x\r\n\r\n").expect("send");
    let mut first = [0; 64];
    stream.read_exact(&mut first).expect("a beginning");
    server.stop(Duration::from_millis(10));
    let mut rest = [0; 1 << 16];
    while let Ok(1..) = stream.read(&mut rest) {}
}

#[test]
fn no_node_and_no_address_are_told_apart() {
    let addr = start(&Fake::new(), None).addr();
    let gone = Client::new(&format!("http://{addr}"), None, Timeouts::default()).expect("a client").info();
    assert!(matches!(gone, Err(ClientError::NoNode { .. })), "{gone:?}");
    for url in ["", "localhost:20202", "https://a", "http://a?b"] {
        assert!(matches!(Client::new(url, None, Timeouts::default()), Err(ClientError::Url { .. })), "{url}");
    }
}
