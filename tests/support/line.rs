//! A long line to an S3 server: every request takes so much longer, and how many
//! requests each one had to wait for, one after the other, is noted. Must not change
//! what goes over it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A request that went over the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Method and target, as they were sent.
    pub what: String,
    /// It, and the longest chain of requests that were answered before it was sent.
    pub depth: usize,
    answered: bool,
}

#[derive(Default)]
struct State {
    latency: Duration,
    asked: Vec<Asked>,
    /// How many were taken before those.
    taken: usize,
}

/// The line; connections live until both ends close them.
pub struct Line {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Line {
    /// A line to the server at `to` (`host:port`).
    pub fn to(to: &str) -> Line {
        Line::from(Ipv4Addr::LOCALHOST, to)
    }

    /// The same, that begins at another address of this machine.
    pub fn from(host: Ipv4Addr, to: &str) -> Line {
        let listener = TcpListener::bind((host, 0)).expect("a port for the line");
        let address = listener.local_addr().expect("the port's number");
        let (to, state) = (to.to_owned(), Arc::new(Mutex::new(State::default())));
        let line = Line { address, state: Arc::clone(&state) };
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let Ok(server) = TcpStream::connect(&to) else { continue };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                connect(client, server, &state);
            }
        });
        line
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The storage URL of a store, over this line: `url` with another endpoint.
    pub fn url(&self, url: &str) -> String {
        let (before, after) = url.split_once("endpoint=http://").expect("an endpoint in the URL");
        let rest = after.find('&').map_or("", |at| &after[at..]);
        format!("{before}endpoint=http://{}{rest}", self.address)
    }

    /// The address in the endpoint of a storage URL.
    pub fn end_of(url: &str) -> String {
        let after = url.split_once("endpoint=http://").expect("an endpoint in the URL").1;
        after.split('&').next().unwrap_or(after).to_owned()
    }

    /// From now on each request takes so much longer.
    pub fn latency(&self, latency: Duration) {
        lock(&self.state).latency = latency;
    }

    /// The requests until now; forgotten by this.
    pub fn take(&self) -> Vec<Asked> {
        let mut state = lock(&self.state);
        state.taken += state.asked.len();
        std::mem::take(&mut state.asked)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Notes a request; returns its number.
    fn ask(&mut self, what: String) -> usize {
        let content = database(&what).map(str::to_owned);
        // Contents of different databases wait for each other only for bandwidth.
        let counts = |asked: &&Asked| {
            asked.answered
                && (content.is_none()
                    || database(&asked.what).is_none_or(|db| Some(db) == content.as_deref()))
        };
        let before = self.asked.iter().filter(counts).map(|asked| asked.depth).max().unwrap_or(0);
        self.asked.push(Asked { what, depth: before + 1, answered: false });
        self.taken + self.asked.len() - 1
    }

    fn answer(&mut self, number: usize) {
        let place = number.checked_sub(self.taken).and_then(|at| self.asked.get_mut(at));
        if let Some(asked) = place {
            asked.answered = true;
        }
    }
}

/// The database whose content a request is for.
fn database(what: &str) -> Option<&str> {
    let after = what.split_once("/db/")?.1;
    after.split('/').next()
}

/// The method and target that `bytes` begin with, if they begin a request.
fn request(bytes: &[u8]) -> Option<String> {
    let line = bytes.split(|byte| *byte == b'\r').next()?;
    let (what, _) = std::str::from_utf8(line).ok()?.rsplit_once(" HTTP/1.")?;
    Some(what.to_owned())
}

/// Carries one connection. Requests are not pipelined: what the client sends after an
/// answer has begun is the next one.
fn connect(client: TcpStream, server: TcpStream, state: &Arc<Mutex<State>>) {
    let current: Arc<Mutex<Option<usize>>> = Arc::default();
    let (mut from, mut to) = (client.try_clone().expect("a connection"), server.try_clone().expect("one"));
    let (asking, noted) = (Arc::clone(&current), Arc::clone(state));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            let idle = asking.lock().unwrap_or_else(PoisonError::into_inner).is_none();
            if let Some(what) = request(&buffer[..len]).filter(|_| idle) {
                let latency = {
                    let mut state = lock(&noted);
                    let number = state.ask(what);
                    *asking.lock().unwrap_or_else(PoisonError::into_inner) = Some(number);
                    state.latency
                };
                // The line's length, not something waited for.
                std::thread::park_timeout(latency);
            }
            if to.write_all(&buffer[..len]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to, noted) = (server, client, Arc::clone(state));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            if let Some(number) = current.lock().unwrap_or_else(PoisonError::into_inner).take() {
                lock(&noted).answer(number);
            }
            if to.write_all(&buffer[..len]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
