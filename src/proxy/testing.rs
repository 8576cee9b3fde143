//! A node that is none, an application that shows what it was asked, and a client that
//! speaks HTTP by hand, for the proxy's tests.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::upstream::Address;
use super::view::{Primary, Role, View};
use super::{Proxy, ProxyOptions, start};
use crate::words::{Checksum, DbName, Pos, Txid};

/// Longer than any machine is too busy for.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn db(name: &str) -> DbName {
    DbName::new(name).expect("a name")
}

pub fn pos(txid: u64, branch: u64) -> Pos {
    Pos { txid: Txid::new(txid), checksum: Checksum::from_stored(1 << 63 | branch).expect("a checksum") }
}

/// The text of a token of one database.
pub fn token(txid: u64, branch: u64) -> String {
    pos(txid, branch).to_string()
}

/// A node whose role and positions the test sets.
pub struct Fake {
    role: Mutex<Role>,
    positions: Mutex<HashMap<DbName, Pos>>,
    changes: watch::Sender<()>,
    unhealthy: Mutex<Option<String>>,
    /// How often a primary was wanted.
    pub wanted: AtomicUsize,
    /// Whether it becomes primary when it is wanted.
    pub promotes: AtomicBool,
    /// A transaction that is committed and not yet captured.
    pub uncaptured: AtomicBool,
}

impl Fake {
    pub fn new(role: Role) -> Arc<Fake> {
        Arc::new(Fake {
            role: Mutex::new(role),
            positions: Mutex::default(),
            changes: watch::Sender::new(()),
            unhealthy: Mutex::default(),
            wanted: AtomicUsize::new(0),
            promotes: AtomicBool::new(false),
            uncaptured: AtomicBool::new(false),
        })
    }

    pub fn primary() -> Arc<Fake> {
        Fake::new(Role::Primary)
    }

    /// A replica of the node with this proxy.
    pub fn replica(proxy: SocketAddr) -> Arc<Fake> {
        let proxy = Some(address(proxy));
        Fake::new(Role::Replica { primary: Some(Primary { hostname: "first".to_owned(), proxy }) })
    }

    /// A replica without a primary.
    pub fn alone() -> Arc<Fake> {
        Fake::new(Role::Replica { primary: None })
    }

    pub fn set_role(&self, role: Role) {
        *self.role.lock() = role;
        self.changes.send_replace(());
    }

    pub fn set_pos(&self, name: &str, pos: Pos) {
        self.positions.lock().insert(db(name), pos);
        self.changes.send_replace(());
    }

    pub fn set_unhealthy(&self, why: &str) {
        *self.unhealthy.lock() = Some(why.to_owned());
    }

    /// Waits until a request waits.
    pub fn wait_waited_for(&self) {
        wait_for("a request waits", || (self.changes.receiver_count() > 0).then_some(()));
    }
}

impl View for Fake {
    fn role(&self) -> Role {
        self.role.lock().clone()
    }

    fn pos(&self, db: &DbName) -> Pos {
        self.positions.lock().get(db).copied().unwrap_or(Pos::ZERO)
    }

    fn settled_pos(&self, db: &DbName) -> Result<Pos, String> {
        let mut positions = self.positions.lock();
        let pos = positions.entry(db.clone()).or_insert(Pos::ZERO);
        if self.uncaptured.swap(false, Ordering::AcqRel) {
            pos.txid = pos.txid.next();
        }
        Ok(*pos)
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn health(&self) -> Result<(), String> {
        self.unhealthy.lock().clone().map_or(Ok(()), Err)
    }

    fn want_primary(&self) {
        self.wanted.fetch_add(1, Ordering::AcqRel);
        if self.promotes.load(Ordering::Acquire) && *self.role.lock() != Role::Primary {
            self.set_role(Role::Primary);
        }
    }
}

pub fn address(addr: SocketAddr) -> Address {
    Address::parse(&addr.to_string()).expect("an address")
}

/// Waits until `ask` gives something.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Options of a proxy for `app`, which tracks `app.db`.
pub fn options(app: SocketAddr) -> ProxyOptions {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    ProxyOptions { wait_timeout: PATIENCE, ..ProxyOptions::new(any, address(app), vec![db("app.db")]) }
}

pub fn proxy(node: &Arc<Fake>, app: &App) -> Proxy {
    start(options(app.addr), Arc::clone(node) as _).expect("a proxy")
}

/// An application: answers every request with what it was asked, one thread for each
/// connection. Paths that do something else: see `serve`.
pub struct App {
    pub addr: SocketAddr,
    pub seen: Arc<Seen>,
}

#[derive(Default)]
pub struct Seen {
    /// Connections accepted.
    pub connections: AtomicUsize,
    /// Bytes of bodies read.
    pub bytes: AtomicUsize,
    /// Clients that went away while the application worked.
    pub gone: AtomicUsize,
    /// Requests that wait for `go`.
    pub waiting: AtomicUsize,
    pub go: AtomicBool,
}

impl App {
    pub fn start(name: &'static str) -> App {
        App::on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind"), name)
    }

    pub fn on(listener: TcpListener, name: &'static str) -> App {
        let addr = listener.local_addr().expect("an address");
        let seen = Arc::new(Seen::default());
        let app = App { addr, seen: Arc::clone(&seen) };
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let seen = Arc::clone(&seen);
                seen.connections.fetch_add(1, Ordering::AcqRel);
                std::thread::spawn(move || while serve(&stream, name, &seen) == Some(true) {});
            }
        });
        app
    }
}

/// Answers one request; whether the connection goes on.
fn serve(mut stream: &TcpStream, name: &str, seen: &Seen) -> Option<bool> {
    let mut reader = BufReader::with_capacity(1, stream);
    let head = read_head(&mut reader)?;
    let path = head.lines().next()?.split(' ').nth(1)?.to_owned();
    match path.as_str() {
        // Never reads the body.
        "/stalled" => wait_for("go", || seen.go.load(Ordering::Acquire).then_some(())),
        // Reads nothing but the end of the connection.
        "/hangs" => {
            seen.waiting.fetch_add(1, Ordering::AcqRel);
            let _ = stream.read(&mut [0]);
            seen.gone.fetch_add(1, Ordering::AcqRel);
            return None;
        }
        "/waits" => {
            seen.waiting.fetch_add(1, Ordering::AcqRel);
            wait_for("go", || seen.go.load(Ordering::Acquire).then_some(()));
        }
        "/upgrade" => {
            let reply = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
            stream.write_all(reply.as_bytes()).ok()?;
            let mut byte = [0];
            while stream.read(&mut byte).ok()? == 1 {
                stream.write_all(&byte.map(|byte| byte.to_ascii_uppercase())).ok()?;
            }
            seen.gone.fetch_add(1, Ordering::AcqRel);
            return None;
        }
        _ => {}
    }
    let length = field(&head, "content-length").and_then(|length| length.parse::<u64>().ok()).unwrap_or(0);
    let mut body = Vec::new();
    if field(&head, "transfer-encoding").is_some() {
        body = read_chunks(&mut reader)?;
    } else if length < 1 << 20 {
        (&mut reader).take(length).read_to_end(&mut body).ok()?;
    } else {
        drain(stream, length)?;
    }
    seen.bytes.fetch_add(body.len().max(length as usize), Ordering::AcqRel);
    let said = format!("{name}\n{head}\n{}", String::from_utf8_lossy(&body));
    let extra = "X-App: yes\r\nKeep-Alive: 5\r\nConnection: x-private\r\nX-Private: 1\r\n";
    match path.as_str() {
        "/chunked" => {
            let start = format!("HTTP/1.1 200 OK\r\n{extra}Transfer-Encoding: chunked\r\n\r\n");
            stream.write_all(start.as_bytes()).ok()?;
            for part in said.as_bytes().chunks(100) {
                stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).ok()?;
                stream.write_all(part).ok()?;
                stream.write_all(b"\r\n").ok()?;
            }
            stream.write_all(b"0\r\n\r\n").ok()?;
        }
        _ => {
            let reply = format!("HTTP/1.1 200 OK\r\n{extra}Content-Length: {}\r\n\r\n", said.len());
            stream.write_all(reply.as_bytes()).ok()?;
            if !head.starts_with("HEAD") {
                stream.write_all(said.as_bytes()).ok()?;
            }
        }
    }
    // It says nothing of it beforehand: as a server does whose patience is over.
    Some(path != "/closes")
}

fn drain(mut stream: &TcpStream, length: u64) -> Option<()> {
    let mut block = vec![0; 64 << 10];
    let mut left = length;
    while left > 0 {
        let want = left.min(block.len() as u64) as usize;
        left -= stream.read(&mut block[..want]).ok().filter(|read| *read > 0)? as u64;
    }
    Some(())
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head.trim_end().to_ascii_lowercase())
}

fn read_chunks(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let size = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

/// The value of a field of a head in lower case.
pub fn field(head: &str, name: &str) -> Option<String> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned);
    head.lines().find_map(value)
}

/// A reply; its head in lower case.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<String> {
        field(&self.head, name)
    }
}

/// One connection to a proxy.
pub struct Browser(BufReader<TcpStream>);

impl Browser {
    pub fn open(addr: SocketAddr) -> Browser {
        let stream = TcpStream::connect(addr).expect("connect to the proxy");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Browser(BufReader::new(stream))
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        self.0.get_mut()
    }

    /// Sends a request as it is.
    pub fn send(&mut self, request: &str) {
        self.stream().write_all(request.as_bytes()).expect("send a request");
    }

    /// Reads a reply's head.
    pub fn head(&mut self) -> Answer {
        let head = read_head(&mut self.0).expect("a reply");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Answer { status, head, body: String::new() }
    }

    /// Reads a reply.
    pub fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        let body = match (answer.field("content-length"), answer.field("transfer-encoding")) {
            (Some(length), _) => {
                let mut body = vec![0; length.parse().expect("a length")];
                self.0.read_exact(&mut body).expect("the body");
                body
            }
            (None, Some(_)) => read_chunks(&mut self.0).expect("the body"),
            (None, None) => Vec::new(),
        };
        answer.body = String::from_utf8(body).expect("text");
        answer
    }

    /// Sends a request with these lines of headers and reads the reply.
    pub fn ask(&mut self, line: &str, headers: &str) -> Answer {
        self.send(&format!("{line} HTTP/1.1\r\nHost: app.example\r\n{headers}\r\n"));
        self.answer()
    }
}

/// One request on a connection of its own.
pub fn ask(proxy: &Proxy, line: &str, headers: &str) -> Answer {
    Browser::open(proxy.addr()).ask(line, headers)
}

/// The same, while the test goes on.
pub fn asking(proxy: &Proxy, line: &str, headers: &str) -> JoinHandle<Answer> {
    let (addr, line, headers) = (proxy.addr(), line.to_owned(), headers.to_owned());
    std::thread::spawn(move || Browser::open(addr).ask(&line, &headers))
}
