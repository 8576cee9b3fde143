//! litefs.toml: found, read strictly, checked; the result is plain data. Must not
//! act on it.

mod check;
mod error;
mod expand;
mod read;
mod search;
mod table;
#[cfg(test)]
mod tests;
mod unbuilt;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exec::Command;
use crate::lease::ConsulPlace;
use crate::proxy::Address;
use crate::words::DbName;

pub use error::ConfigError;
pub use expand::Environment;
pub use search::find;
pub use values::duration as parse_duration;

/// A whole configuration. Relative paths (and relative `file://` URLs) were
/// resolved against the directory of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// `[fuse]`
    pub fuse: Fuse,
    /// `[data]`
    pub data: Data,
    /// `[storage]`
    pub storage: Storage,
    /// `[lease]`
    pub lease: Lease,
    /// `[http]`
    pub http: Http,
    /// `[proxy]`, if there is one.
    pub proxy: Option<Proxy>,
    /// `[[exec]]`, in order.
    pub exec: Vec<Command>,
    /// `[log]`
    pub log: Log,
}

/// The mount.
#[derive(Clone, Debug, PartialEq)]
pub struct Fuse {
    /// Where.
    pub dir: PathBuf,
    /// Whether other users may use it.
    pub allow_other: bool,
    /// Kernel passthrough for journal, WAL and shm files.
    pub passthrough: Passthrough,
}

/// Whether kernel passthrough is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passthrough {
    /// Where kernel and rights allow it.
    Auto,
    /// Never.
    Off,
}

/// The node's own files.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// Where.
    pub dir: PathBuf,
    /// How long local change sets are kept for peers.
    pub retention: Duration,
    /// How many bytes of them at most, if limited.
    pub retention_size: Option<u64>,
}

/// The archive.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// `file:///absolute/path` or `s3://bucket/prefix?…`.
    pub url: String,
    /// S3: the endpoint, if not AWS.
    pub endpoint: Option<String>,
    /// S3: the region.
    pub region: Option<String>,
    /// S3: the bucket in the path instead of the host name.
    pub force_path_style: Option<bool>,
    /// How often change sets are put at most.
    pub sync_interval: Duration,
    /// When a commit counts as done.
    pub durability: Durability,
    /// How many bytes of change sets may wait for the archive.
    pub backlog: u64,
    /// How change sets are compressed.
    pub encoding: Encoding,
    /// How long history is kept.
    pub retention: Duration,
    /// How long branches that lost are kept.
    pub parked_retention: Duration,
    /// How often a changed database gets a snapshot.
    pub snapshot_interval: Duration,
    /// What is fetched before a node serves.
    pub hydration: Hydration,
    /// What a node does when it starts and storage does not answer.
    pub on_unreachable: OnUnreachable,
    /// How long a stop may take to drain to the archive.
    pub shutdown_timeout: Duration,
}

/// When a commit counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it is as durable on this machine as the application asked.
    Async,
    /// When the archive has it.
    Archive,
}

/// How change sets are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Small.
    Zstd {
        /// From 1 (fast) to 22 (small).
        level: i32,
    },
    /// What Litestream reads.
    Lz4,
}

/// What is fetched before a node serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hydration {
    /// Positions; pages follow on demand and in the background.
    Lazy,
    /// Everything.
    Full,
}

/// What a node does when it starts and storage does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnUnreachable {
    /// Waits.
    Wait,
    /// Serves reads from what it has.
    ServeStale,
}

/// Who may be primary.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Which kind of lease.
    pub kind: LeaseKind,
    /// Whether this node may become primary; with a static lease, whether it is.
    pub candidate: bool,
    /// Whether this node takes the lease over once it stands at the head.
    pub promote: bool,
    /// How long a lease holds without renewal.
    pub ttl: Duration,
    /// This node's name for people and `.primary`.
    pub hostname: String,
    /// Where other nodes and proxies reach this one's API; with a static lease on
    /// a node that is not the primary, the primary's.
    pub advertise_url: Option<String>,
    /// Gives the lease away after so much time without a write; zero never does.
    pub release_on_idle: Duration,
    /// The databases that this node follows; empty for all.
    pub databases: Vec<String>,
}

/// Which kind of lease.
#[derive(Clone, Debug, PartialEq)]
pub enum LeaseKind {
    /// In the archive's own storage.
    Storage,
    /// Whoever is configured as candidate.
    Static,
    /// In Consul.
    Consul(Consul),
}

/// Where Consul is.
#[derive(Clone, Debug, PartialEq)]
pub struct Consul {
    /// The agent, by an address in which a password is the ACL token and a path the key's
    /// prefix, and the key.
    pub place: ConsulPlace,
    /// The session's time to live.
    pub ttl: Duration,
    /// How long the key stays locked after a session was lost.
    pub lock_delay: Duration,
}

/// The API.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What clients must show.
    pub token: Option<Secret>,
}

/// The proxy before the application.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Where the proxies of other nodes reach this one; with a static lease on a node
    /// that is not the primary, the primary's. By default the host of
    /// `lease.advertise-url` with this proxy's port.
    pub advertise_url: Option<Address>,
    /// The application's address.
    pub target: Address,
    /// The databases whose positions clients carry.
    pub databases: Vec<DbName>,
    /// How far behind a healthy node may be; zero for any.
    pub max_lag: Duration,
    /// Paths that are passed on as they are (`*` matches anything).
    pub passthrough: Vec<String>,
    /// Paths whose reads count as writes.
    pub always_forward: Vec<String>,
    /// How writes get to the primary.
    pub forward: Forward,
    /// How long a request waits for its position or a primary.
    pub wait_timeout: Duration,
}

/// How writes get to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// This proxy passes them on.
    Proxy,
    /// Fly.io's router repeats them.
    FlyReplay,
}

/// The log, on standard error.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives of
    /// tracing-subscriber's `EnvFilter`.
    pub level: String,
}

/// How the log's lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// A text that must not get into logs or messages.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Config {
    /// Reads and checks a file; variables come from the process' environment.
    pub fn load(file: &Path, expand_env: bool) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| ConfigError::Unreadable { file: file.to_owned(), why: error.to_string() })?;
        let env = |name: &str| std::env::var(name).ok();
        let env: Option<Environment<'_>> = if expand_env { Some(&env) } else { None };
        Config::parse(file, &text, env)
    }

    /// Reads and checks a text that stands in `file`; without an environment, `$`
    /// has no meaning in values.
    pub fn parse(file: &Path, text: &str, env: Option<Environment<'_>>) -> Result<Config, ConfigError> {
        read::read(file, text, env).map_err(|fault| ConfigError::At {
            file: file.to_owned(),
            line: error::line_of(text, fault.at),
            text: fault.text,
        })
    }
}
