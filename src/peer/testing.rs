//! A node that is none, for tests of the server and the client.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use parking_lot::Mutex;

use super::events::{Events, Subscription};
use super::service::{
    ArchiveState, ArchiveStatus, DatabaseStatus, Export, Health, Info, MountStatus, ReplicaStatus, Role,
    Service, ServiceError, Status,
};
use super::stream::Feed;
use super::wire::Hello;
use crate::words::{DbName, NodeId, PageSize, Pos, Timestamp, Txid};

/// An info.
pub fn info() -> Info {
    Info {
        cluster: None,
        node: NodeId::new(1),
        hostname: "here".to_owned(),
        is_primary: true,
        candidate: true,
        path: "/mnt".to_owned(),
        primary: None,
        version: "0".to_owned(),
    }
}

/// A status with one database whose name needs escaping.
pub fn status() -> Status {
    let pos = Pos { txid: Txid::new(7), ..Pos::ZERO };
    Status {
        role: Role::Primary,
        primary: Some("here".to_owned()),
        epoch: None,
        node: NodeId::new(1),
        cluster: None,
        version: "0".to_owned(),
        started: Timestamp::from_millis(0),
        lag_ms: Some(0),
        mount: MountStatus { path: "/mnt".to_owned(), mounted: true, passthrough: true },
        archive: ArchiveStatus {
            url: "file:///archive".to_owned(),
            state: ArchiveState::Synced,
            error: None,
            requests: BTreeMap::from([("put".to_owned(), 3)]),
            unarchived: 0,
            unarchived_bytes: 0,
            oldest: None,
            backlog: Some(1_000_000),
            full: false,
            bytes_out: 10,
            bytes_in: 20,
        },
        databases: vec![DatabaseStatus {
            name: DbName::new("a \"b\".db").expect("a name"),
            pos,
            page_size: PageSize::new(4096).ok(),
            pages: 2,
            unarchived: 0,
            archived: pos,
            modified: None,
            commits: 7,
            hydrated: 1.0,
        }],
        parked: 0,
        replicas: vec![ReplicaStatus { node: NodeId::new(2), hostname: "there".to_owned(), behind: 1 }],
    }
}

/// Who asked for a feed, and where it stands.
pub type Asked = (Hello, Vec<(DbName, Pos)>);

/// Gives a replica its feed.
pub type OpenFeed =
    Box<dyn Fn(&Hello, Vec<(DbName, Pos)>) -> Result<Arc<dyn Feed>, ServiceError> + Send + Sync>;

/// Keeps imported bytes in memory; fails where its fields say so.
#[derive(Default)]
pub struct Fake {
    pub databases: Mutex<BTreeMap<DbName, Vec<u8>>>,
    pub events: Events,
    pub not_ready: Mutex<Option<String>>,
    /// An endless export, to be cut off.
    pub endless: bool,
    /// What replicas are told; none: the node is no primary.
    pub feed: Option<OpenFeed>,
    /// Who asked for it.
    pub replicas: Mutex<Vec<Asked>>,
}

impl Fake {
    /// A fake to share with a server.
    pub fn new() -> Arc<Fake> {
        Arc::new(Fake::default())
    }
}

impl Service for Fake {
    fn info(&self) -> Info {
        info()
    }

    fn status(&self) -> Status {
        status()
    }

    fn health(&self) -> Health {
        self.not_ready.lock().clone().map_or(Health::Ready, Health::NotReady)
    }

    fn export(&self, db: &DbName) -> Result<Export, ServiceError> {
        if self.endless {
            return Ok(Export { pos: Pos::ZERO, size: u64::MAX, reader: Box::new(std::io::repeat(7)) });
        }
        let bytes = self.databases.lock().get(db).cloned();
        let bytes = bytes.ok_or_else(|| ServiceError::NoDatabase(db.clone()))?;
        let size = bytes.len() as u64;
        Ok(Export { pos: Pos::ZERO, size, reader: Box::new(std::io::Cursor::new(bytes)) })
    }

    fn import(&self, db: &DbName, body: &mut dyn Read) -> Result<Pos, ServiceError> {
        let mut first = [0; 6];
        body.read_exact(&mut first).map_err(|error| ServiceError::BadInput(error.to_string()))?;
        if &first != b"SQLite" {
            return Err(ServiceError::BadInput(format!("what was sent for {db} is no database")));
        }
        let mut bytes = first.to_vec();
        body.read_to_end(&mut bytes).map_err(|error| ServiceError::BadInput(error.to_string()))?;
        self.databases.lock().insert(db.clone(), bytes);
        Ok(Pos { txid: Txid::new(1), ..Pos::ZERO })
    }

    fn promote(&self) -> Result<(), ServiceError> {
        Err(ServiceError::NotSupported("the lease is static".to_owned()))
    }

    fn handoff(&self, node: &str) -> Result<(), ServiceError> {
        Err(ServiceError::NotReady(format!("no node {node}")))
    }

    fn subscribe(&self) -> Subscription {
        self.events.subscribe()
    }

    fn feed(&self, replica: &Hello, positions: Vec<(DbName, Pos)>) -> Result<Arc<dyn Feed>, ServiceError> {
        self.replicas.lock().push((replica.clone(), positions.clone()));
        self.feed.as_ref().ok_or(ServiceError::NotPrimary { primary: None })?(replica, positions)
    }
}
