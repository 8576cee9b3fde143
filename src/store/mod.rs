//! Many databases in one data directory: opening and recovering them, creating and
//! dropping them, directories of the mount, the role of this node, and the queue of
//! captured transactions that wait to be published. Must not know the archive or
//! FUSE.

mod changes;
mod commits;
mod names;
mod news;
mod parked;
mod upkeep;

pub use commits::{Backlog, Commits};
pub use names::Entry;
pub use news::News;
pub use parked::{ParkedBranch, Parks, parked};
pub use upkeep::LogRetention;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::db::{
    ChangeLog, Database, DbError, FileKind, LogError, LogOptions, OwnMount, Parked, Paused, Place, Scanned,
    Shared, Since, Tail, replace_file,
};
use crate::words::{Clock, ClusterId, DbName, Epoch, Faults, NodeId, Timestamp};

/// Who may write, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// This node.
    Primary,
    /// Another node, or none.
    Replica {
        /// The primary's hostname, if known.
        primary: Option<String>,
    },
}

impl Default for Role {
    fn default() -> Role {
        Role::Replica { primary: None }
    }
}

/// How to open a store.
pub struct StoreOptions {
    /// The data directory.
    pub dir: PathBuf,
    /// Identifies the machine's boot: what was written before another one may be lost
    /// where it was not fsynced.
    pub boot_id: String,
    /// A node id for a data directory that has none yet.
    pub new_node: NodeId,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Fail points.
    pub faults: Faults,
}

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another node runs on it.
    #[error(
        "the data directory {dir} is in use by another litefs; stop that one, or give this one another data.dir",
        dir = dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// A system call failed.
    #[error("{attempt} {path}: {source}", path = path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the directory is not what litefs writes.
    #[error(
        "{path} is damaged ({why}); move the data directory aside and start again: the node then restores from \
         the archive",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The change log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A database.
    #[error(transparent)]
    Database(#[from] DbError),
}

impl StoreError {
    fn io(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> StoreError {
        let path = path.into();
        move |source| StoreError::Io { attempt, path, source }
    }
}

/// What `node.json` in the data directory says.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct NodeFile {
    node: NodeId,
    cluster: Option<ClusterId>,
    boot: String,
    /// Databases stand by themselves for everything before this place of the log.
    replay_from: Place,
    /// The epoch in which what is here was committed last.
    #[serde(default)]
    epoch: Epoch,
}

/// The databases of one node.
pub struct Store {
    dir: PathBuf,
    shared: Arc<Shared>,
    commits: Arc<Commits>,
    databases: RwLock<BTreeMap<DbName, Arc<Database>>>,
    node: Mutex<NodeFile>,
    role: RwLock<Role>,
    on_wanted: OnceLock<Box<dyn Fn() + Send + Sync>>,
    parks: Arc<Parks>,
    /// When the primary had what is here.
    current: RwLock<Option<Duration>>,
    _lock: File,
}

impl Store {
    /// Opens the data directory (created if missing) and recovers every database.
    pub fn open(options: StoreOptions) -> Result<Store, StoreError> {
        let dir = options.dir;
        let root = dir.join("dbs");
        for path in [&root, &dir.join("super")] {
            fs::create_dir_all(path).map_err(StoreError::io("create", path))?;
        }
        let lock = lock_dir(&dir)?;
        let node = read_node_file(&dir, options.new_node, &options.boot_id)?;
        let since = if node.boot == options.boot_id { Since::SameBoot } else { Since::Reboot };
        let log_options = LogOptions { faults: options.faults.clone(), ..LogOptions::default() };
        let (log, scanned) = ChangeLog::open(&dir.join("log"), log_options, node.replay_from.file)?;
        let commits = Arc::new(Commits::default());
        let shared = Shared::new(root, log, options.clock, options.faults, Arc::clone(&commits) as _);
        let store = Store {
            dir,
            shared: Arc::new(shared),
            commits,
            databases: RwLock::default(),
            node: Mutex::new(NodeFile { boot: options.boot_id, ..node }),
            role: RwLock::default(),
            on_wanted: OnceLock::new(),
            parks: Arc::default(),
            current: RwLock::default(),
            _lock: lock,
        };
        store.recover(scanned, since)?;
        Ok(store)
    }

    fn recover(&self, scanned: Scanned, since: Since) -> Result<(), StoreError> {
        let mut tails: HashMap<DbName, Tail> = HashMap::new();
        let mut names = names::databases(&self.shared.root)?;
        for change in &scanned.committed {
            names.insert(change.meta.db.clone());
            tails.entry(change.meta.db.clone()).or_default().committed.push(change.clone());
        }
        for (db, change) in scanned.prepared {
            tails.entry(db).or_default().prepared = Some(change);
        }
        self.commits.preload(&scanned.committed);
        let supers = names::super_journals(&self.dir.join("super"))?;
        let there = |name: &[u8]| supers.iter().any(|known| name.ends_with(known.as_bytes()));
        let mut databases = BTreeMap::new();
        for name in names {
            let tail = tails.remove(&name).unwrap_or_default();
            let database = Database::recover(name.clone(), Arc::clone(&self.shared), tail, since, &there)?;
            databases.insert(name, Arc::new(database));
        }
        self.commits.forget_other_pasts(|db| databases.get(db).map(|database| database.log_from()));
        *self.databases.write().unwrap_or_else(PoisonError::into_inner) = databases;
        self.shared.faults.pass("recover.all").map_err(StoreError::io("recover", &self.dir))?;
        for known in supers {
            let path = names::super_journal_path(&self.dir.join("super"), &known);
            fs::remove_file(&path).map_err(StoreError::io("remove", path))?;
        }
        self.checkpoint()
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        self.node_file().node
    }

    /// The cluster that this data directory belongs to, once it has joined one.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.node_file().cluster
    }

    /// Joins a cluster.
    pub fn set_cluster(&self, cluster: ClusterId) -> Result<(), StoreError> {
        self.node_file().cluster = Some(cluster);
        self.write_node_file()
    }

    /// The epoch in which what is here, and the archive may lack, was committed.
    pub fn epoch(&self) -> Epoch {
        self.node_file().epoch
    }

    /// What comes from here on is committed in this epoch.
    pub fn set_epoch(&self, epoch: Epoch) -> Result<(), StoreError> {
        if self.epoch() == epoch {
            return Ok(());
        }
        self.node_file().epoch = epoch;
        self.write_node_file()
    }

    fn node_file(&self) -> MutexGuard<'_, NodeFile> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_node_file(&self) -> Result<(), StoreError> {
        let path = self.dir.join("node.json");
        let node = self.node_file().clone();
        let text = serde_json::to_vec_pretty(&node)
            .map_err(|error| StoreError::io("write", &path)(std::io::Error::other(error)))?;
        replace_file(&path, &text).map_err(StoreError::io("write", path))
    }

    /// Wall time.
    pub fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The change log.
    pub fn log(&self) -> &ChangeLog {
        &self.shared.log
    }

    /// Captured transactions that wait to be published.
    pub fn commits(&self) -> &Arc<Commits> {
        &self.commits
    }

    /// What happens here, for those who wait for it.
    pub fn news(&self) -> &News {
        self.commits.news()
    }

    /// The database of this name, if it is there and was not dropped.
    pub fn database(&self, name: &DbName) -> Option<Arc<Database>> {
        self.known(name).filter(|database| database.exists())
    }

    /// The database of this name, dropped or not.
    pub fn known(&self, name: &DbName) -> Option<Arc<Database>> {
        self.databases.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Every database, dropped ones too.
    pub fn all(&self) -> Vec<Arc<Database>> {
        self.databases.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Every database that is there.
    pub fn databases(&self) -> Vec<Arc<Database>> {
        self.all().into_iter().filter(|database| database.exists()).collect()
    }

    /// The database of this name, made known if it is not; without a file.
    pub fn entry(&self, name: &DbName) -> Result<Arc<Database>, DbError> {
        let mut databases = self.databases.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = databases.get(name) {
            return Ok(Arc::clone(database));
        }
        let shared = Arc::clone(&self.shared);
        let database = Database::recover(name.clone(), shared, Tail::default(), Since::SameBoot, &|_| false)?;
        let database = Arc::new(database);
        databases.insert(name.clone(), Arc::clone(&database));
        Ok(database)
    }

    /// An application creates a database file.
    pub fn create(&self, name: &DbName, mode: u32, uid: u32, gid: u32) -> Result<Arc<Database>, DbError> {
        let database = self.entry(name)?;
        database.create(mode)?;
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if owner != (uid, gid) {
            database.set_attributes(FileKind::Database, None, Some(uid), Some(gid))?;
        }
        Ok(database)
    }

    /// Moves a database whose branch lost aside; it is brought to the head anew.
    pub fn park(&self, database: &Database) -> Result<Parked, DbError> {
        let (name, at) = (database.name(), self.shared.clock.now());
        let from = self.commits.oldest_of(name).map(|commit| commit.meta.pre);
        let node = self.node_id();
        let dir = parked::dir_of(&self.dir, name, at, node);
        let what = Parked { db: name.clone(), pos: database.pos(), from, at, node: Some(node) };
        let parked = database.park(&dir, what)?;
        self.commits.forget(name);
        self.parks.note();
        Ok(parked)
    }

    /// How many branches are kept aside.
    pub fn parked_count(&self) -> u64 {
        parked::count(&self.dir)
    }

    /// What tells of every branch that is moved aside.
    pub fn parks(&self) -> &Arc<Parks> {
        &self.parks
    }

    /// The role of this node.
    pub fn role(&self) -> Role {
        self.role.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether applications may write here.
    pub fn is_writable(&self) -> bool {
        self.shared.writable()
    }

    /// Sets whether a commit counts only once the archive has it; before the mount.
    pub fn set_archive_first(&self, archive_first: bool) {
        self.shared.set_archive_first(archive_first);
    }

    /// Whether a commit counts only once the archive has it.
    pub fn archive_first(&self) -> bool {
        self.shared.archive_first()
    }

    /// Takes a role; only the primary's applications may write. Commits that wait for
    /// the archive fail where another becomes it.
    pub fn set_role(&self, role: Role) {
        if role == Role::Primary {
            self.commits.accept_waits();
        }
        self.shared.set_writable(role == Role::Primary);
        if role != Role::Primary {
            self.commits.refuse_waits();
        }
        *self.role.write().unwrap_or_else(PoisonError::into_inner) = role;
        self.commits.changes.tell();
        self.news().tell();
    }

    /// Adds someone who is told, after it, that the role or the readable position of a
    /// database has changed; not of what. It must return at once and must not call the
    /// store.
    pub fn on_change(&self, told: impl Fn() + Send + Sync + 'static) {
        self.commits.changes.add(Box::new(told));
    }

    /// Sets who is told when an application opens a database for writing and may not
    /// write, once; must return at once.
    pub fn on_wanted(&self, told: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_wanted.set(Box::new(told));
    }

    /// An application opens a database for writing, or tries to begin a transaction.
    pub fn wanted(&self) {
        if !self.shared.writable()
            && let Some(told) = self.on_wanted.get()
        {
            told();
        }
    }

    /// Keeps applications from writing to any database, and captures what they wrote;
    /// waits up to `patience` for each that is being written.
    pub fn hold_writers(&self, patience: Duration) -> Result<(), DbError> {
        self.databases().iter().try_for_each(|database| database.hold_writers(patience))
    }

    /// Makes applications that want to write to any database wait, and captures what
    /// they wrote, until [`Store::release_writers`] is called, or what is returned is
    /// dropped and the role another; waits up to `patience` for each that is writing.
    pub fn pause_writers(&self, patience: Duration) -> Result<Vec<Paused>, DbError> {
        self.databases().iter().map(|database| database.pause_writers(patience)).collect()
    }

    /// Lets applications write again.
    pub fn release_writers(&self) -> Result<(), DbError> {
        self.all().iter().try_for_each(|database| database.release_writers())
    }

    /// How far behind the primary a replica is, at most; `None` if nothing is known.
    pub fn lag(&self) -> Option<Duration> {
        let current = *self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.map(|current| self.shared.clock.elapsed().saturating_sub(current))
    }

    /// What the primary had at this moment (by the clock's `elapsed`) is here.
    pub fn set_current(&self, at: Duration) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = (*current).max(Some(at));
    }

    /// The mount hands itself in.
    pub fn set_mount(&self, own: Arc<dyn OwnMount>) {
        self.shared.set_own(Some(own));
    }

    /// The mount is gone.
    pub fn unset_mount(&self) {
        self.shared.set_own(None);
        self.all().iter().for_each(|database| database.forget_hold());
    }
}

fn lock_dir(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse { dir: dir.to_owned() }),
        Err(error) => Err(StoreError::io("lock", path)(error.into())),
    }
}

fn read_node_file(dir: &Path, new_node: NodeId, boot: &str) -> Result<NodeFile, StoreError> {
    let path = dir.join("node.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| StoreError::Damaged { path, why: error.to_string() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(NodeFile {
            node: new_node,
            cluster: None,
            boot: boot.to_owned(),
            replay_from: Place::default(),
            epoch: Epoch::default(),
        }),
        Err(source) => Err(StoreError::io("read", path)(source)),
    }
}
