//! An S3 server in this process, for tests: exact about conditions, in memory, and
//! able to fail as real ones do. Must not be told apart from S3 by a client, unless
//! it is asked to misbehave.

#![allow(dead_code, reason = "each test binary uses a part of it")]

mod bucket;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bucket::Buckets;
use hyper_util::rt::TokioIo;
use litefs::object::{KeyPair, Location, Options, S3Location};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::runtime::Runtime;

/// The bucket that is there.
pub const BUCKET: &str = "test-bucket";
/// Every operation.
pub const ANY: &str = "*";
const KEY: &str = "test-key";
const SECRET: &str = "test-secret";

/// How a request goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// 503 SlowDown; nothing is done.
    Refuse,
    /// 500 after the deed.
    DoThenFail,
    /// No answer after the deed.
    DoThenHang,
    /// No answer, nothing is done.
    Hang,
    /// The deed waits until the trouble is taken away.
    Hold,
    /// 409 ConditionalRequestConflict; nothing is done.
    Conflict,
    /// The content breaks off in the middle.
    Truncate,
    /// 403 with this code.
    Deny(&'static str),
}

/// Which requests go wrong.
struct Rule {
    op: &'static str,
    key: String,
    times: u64,
    trouble: Trouble,
}

impl Rule {
    fn meets(&self, op: &str, key: &str) -> bool {
        self.times > 0 && (self.op == ANY || self.op == op) && key.contains(&self.key)
    }
}

/// How the server departs from S3, where real ones do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// `If-Match` holds only without quotes (the Ceph family).
    pub unquoted_etags: bool,
    /// Conditions are ignored (Garage, GCS).
    pub ignores_conditions: bool,
    /// Conditions on puts are answered with 501 (Backblaze B2).
    pub refuses_conditions: bool,
    /// Ranges are ignored.
    pub ignores_ranges: bool,
}

/// What requests share.
#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    quirks: Quirks,
    latency: Duration,
    requests: Vec<String>,
    /// Keys that were put, and when they were there.
    stored: Vec<(String, Duration)>,
    /// Objects that are read now, and the most that ever were.
    reads: usize,
    most_reads: usize,
}

/// The server; it ends when it is dropped.
pub struct S3Server {
    runtime: Option<Runtime>,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    buckets: Buckets,
}

impl S3Server {
    /// Starts a server with one empty bucket on a free port of the loopback.
    pub fn start() -> S3Server {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime for the S3 server");
        let state = Arc::new(Mutex::new(State::default()));
        let buckets = Buckets::new(Arc::clone(&state));
        let mut builder = S3ServiceBuilder::new(buckets.clone());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let listener =
            runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port for the S3 server");
        let address = listener.local_addr().expect("the port's number");
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let service = service.clone();
                tokio::spawn(async move {
                    let io = TokioIo::new(stream);
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                });
            }
        });
        S3Server { runtime: Some(runtime), address, state, buckets }
    }

    /// Where a store below `prefix` is.
    pub fn place(&self, prefix: &str) -> S3Location {
        match Location::parse(&self.url(prefix), &Self::options()) {
            Ok(Location::S3(place)) => place,
            other => panic!("the server's URL is not one of S3: {other:?}"),
        }
    }

    /// The storage URL of a store below `prefix`.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}?endpoint=http://{}", self.address)
    }

    /// The options to open a store here with: the credentials.
    pub fn options() -> Options {
        let pair = KeyPair { id: KEY.to_owned(), secret: SECRET.to_owned() };
        Options { credentials: Some(pair), ..Options::default() }
    }

    /// The environment for a process that opens a store here.
    pub fn environment() -> [(&'static str, &'static str); 4] {
        [
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next `times` requests of operation `op` (as S3 calls it, `PutObject`; or [`ANY`]) on keys
    /// that contain `key` go wrong.
    pub fn trouble(&self, op: &'static str, key: &str, times: u64, trouble: Trouble) {
        self.state().rules.push(Rule { op, key: key.to_owned(), times, trouble });
    }

    /// Takes all trouble away.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// Departs from S3.
    pub fn quirks(&self, quirks: Quirks) {
        self.state().quirks = quirks;
    }

    /// Each request takes this much longer.
    pub fn latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// The requests until now, as `operation key`; forgotten by this.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    /// The keys in the bucket that were put until now, and when (CLOCK_BOOTTIME); forgotten
    /// by this.
    pub fn take_stored(&self) -> Vec<(String, Duration)> {
        std::mem::take(&mut self.state().stored)
    }

    /// How many objects were read at a time, at the most.
    pub fn most_reads(&self) -> usize {
        self.state().most_reads
    }

    /// The uploads that were begun and neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.buckets.open_uploads()
    }

    /// An object's metadata of this name; `key` is the bucket's.
    pub fn metadata(&self, key: &str, name: &str) -> Option<String> {
        self.buckets.metadata(key, name)
    }

    /// Leaves an upload behind as of `age` ago.
    pub fn leave_upload(&self, key: &str, age: Duration) {
        self.buckets.leave_upload(key, age);
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
