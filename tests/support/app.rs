//! A small web application on a database of the mount, as one behind the proxy is, and
//! a client for it. Speaks HTTP by hand.
//!
//! `POST /add` adds a row and answers how many there are, `GET /count` answers that,
//! `POST /sink` takes any body and answers its length, `GET /slow` answers when the
//! application is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use super::{PATIENCE, wait_for};

/// The application; its threads end with its clients.
pub struct App {
    pub addr: SocketAddr,
    pub slow: Arc<Slow>,
}

/// What `GET /slow` waits for.
#[derive(Default)]
pub struct Slow {
    pub waiting: AtomicUsize,
    pub go: AtomicBool,
}

impl App {
    /// An application that keeps its rows in `db`, in this journal mode where it is set.
    pub fn start(db: &Path, mode: Option<&str>) -> App {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind the application");
        let addr = listener.local_addr().expect("the application's address");
        let slow = Arc::<Slow>::default();
        let (db, mode) = (db.to_path_buf(), mode.map(str::to_owned));
        let app = App { addr, slow: Arc::clone(&slow) };
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (db, mode, slow) = (db.clone(), mode.clone(), Arc::clone(&slow));
                std::thread::spawn(move || serve(stream, &db, mode.as_deref(), &slow));
            }
        });
        app
    }
}

/// Serves one connection to its end. Its database is closed with it, so that nothing
/// keeps the mount.
fn serve(stream: TcpStream, db: &Path, mode: Option<&str>, slow: &Slow) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let head = read_head(&mut reader)?;
        let mut words = head.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        let length = field(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0u64);
        let (status, body) = match (method, path) {
            ("post", "/sink") => {
                let mut rest = (&mut reader).take(length);
                ("200 OK", std::io::copy(&mut rest, &mut std::io::sink()).ok()?.to_string())
            }
            ("get", "/slow") => {
                slow.waiting.fetch_add(1, Ordering::AcqRel);
                wait_for("the application is told to", || slow.go.load(Ordering::Acquire).then_some(()));
                ("200 OK", "slow".to_owned())
            }
            _ => match answer(method, path, db, mode) {
                Ok(count) => ("200 OK", count.to_string()),
                Err(error) => ("500 Internal Server Error", error.to_string()),
            },
        };
        let reply = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        reader.get_mut().write_all(reply.as_bytes()).ok()?;
    }
}

fn answer(method: &str, path: &str, db: &Path, mode: Option<&str>) -> rusqlite::Result<i64> {
    let connection = Connection::open(db)?;
    connection.busy_timeout(Duration::from_secs(30))?;
    if (method, path) == ("post", "/add") {
        if let Some(mode) = mode {
            connection.pragma_update(None, "journal_mode", mode)?;
        }
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY); INSERT INTO t VALUES(NULL)",
        )?;
    }
    connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head.to_ascii_lowercase())
}

fn field(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
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

/// A client with a connection of its own, which carries its token as a browser does.
pub struct Client {
    stream: BufReader<TcpStream>,
    pub token: Option<String>,
}

impl Client {
    pub fn open(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect(addr).expect("connect to the proxy");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Client { stream: BufReader::new(stream), token: None }
    }

    /// Sends the head of a request.
    pub fn send(&mut self, line: &str, length: u64) {
        let token = self.token.as_ref().map(|token| format!("Litefs-Txid: {token}\r\n")).unwrap_or_default();
        let head = format!("{line} HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n{token}\r\n");
        self.write(head.as_bytes());
    }

    /// Sends a piece of a body.
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("send to the proxy");
    }

    /// Reads a reply.
    pub fn answer(&mut self) -> Answer {
        let head = read_head(&mut self.stream).expect("a reply");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let length = field(&head, "content-length").and_then(|length| length.parse().ok()).expect("a length");
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("the body");
        let answer = Answer { status, head, body: String::from_utf8(body).expect("text") };
        self.token = answer.field("litefs-txid").or(self.token.take());
        answer
    }

    /// Sends a request without a body and reads the reply.
    pub fn ask(&mut self, line: &str) -> Answer {
        self.send(line, 0);
        self.answer()
    }

    /// The same; its answer, which is a number.
    pub fn number(&mut self, line: &str) -> u64 {
        let answer = self.ask(line);
        assert_eq!(answer.status, 200, "{line}: {answer:?}");
        answer.body.parse().unwrap_or_else(|_| panic!("{line}: {answer:?}"))
    }
}
