//! A data directory with a store on it, as applications see it through a mount, but
//! without a kernel: what the mount would do is done by `vfs`. Must not judge results.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use litefs::db::{FileKind, OwnMount, Paths, WAL_INDEX_HEADER, WalIndex};
use litefs::store::{Role, Store, StoreOptions};
use litefs::words::{DbName, Faults, NodeId, SystemClock};
use rusqlite::{Connection, OpenFlags};

/// The boot that tests begin with.
pub const BOOT: &str = "boot-1";

/// Called before every step of an application or of the daemon, with its name.
type Hook = Arc<dyn Fn(&World, &str) + Send + Sync>;

/// One node's data directory and mount.
pub struct World {
    /// The store under test.
    pub store: Arc<Store>,
    /// Its fail points.
    pub faults: Faults,
    /// The data directory.
    pub data: PathBuf,
    /// The directory that stands for the mount.
    pub mount: PathBuf,
    pub(crate) shm: Arc<ShmUse>,
    pub(crate) unsynced: Mutex<BTreeSet<PathBuf>>,
    pub(crate) opens: Mutex<HashMap<DbName, u32>>,
    /// Open journals.
    pub(crate) journals: Mutex<HashMap<DbName, u32>>,
    hook: Mutex<Option<Hook>>,
    stepping: AtomicBool,
    unsound: AtomicBool,
}

/// Who has wal-indexes open and locked: what the kernel would know.
#[derive(Default)]
pub(crate) struct ShmUse {
    root: PathBuf,
    databases: Mutex<HashMap<DbName, (u32, u32)>>,
}

impl ShmUse {
    fn of(&self, db: &DbName) -> (u32, u32) {
        self.table().get(db).copied().unwrap_or_default()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<DbName, (u32, u32)>> {
        self.databases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self, db: &DbName) {
        self.table().entry(db.clone()).or_default().0 += 1;
    }

    pub(crate) fn close(&self, db: &DbName) {
        let mut table = self.table();
        let entry = table.entry(db.clone()).or_default();
        entry.0 = entry.0.saturating_sub(1);
    }

    pub(crate) fn write_lock(&self, db: &DbName, held: bool) {
        self.table().entry(db.clone()).or_default().1 = u32::from(held);
    }
}

impl OwnMount for ShmUse {
    fn wal_index(&self, db: &DbName) -> io::Result<WalIndex> {
        if self.of(db).0 == 0 {
            return Ok(WalIndex::Unused);
        }
        let file = match File::open(Paths::new(&self.root, db).file(FileKind::Shm)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(WalIndex::Unused),
            Err(error) => return Err(error),
        };
        let mut header = Box::new([0; WAL_INDEX_HEADER]);
        let mut done = 0;
        while done < header.len() {
            match file.read_at(&mut header[done..], done as u64)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(WalIndex::Used(header))
    }

    fn wal_write_locked(&self, db: &DbName) -> io::Result<bool> {
        Ok(self.of(db).1 > 0)
    }

    fn changed(&self, _db: &DbName, _offset: u64, _len: u64) {}
}

impl World {
    /// A node on `<dir>/data`, primary.
    pub fn open(dir: &Path, boot: &str) -> Arc<World> {
        World::try_open(dir, boot).expect("the store opens")
    }

    /// As `open`, which must succeed.
    pub fn try_open(dir: &Path, boot: &str) -> Result<Arc<World>, litefs::store::StoreError> {
        World::try_open_with(dir, boot, Faults::none())
    }

    /// As `try_open`, with these fail points from the beginning.
    pub fn try_open_with(
        dir: &Path,
        boot: &str,
        faults: Faults,
    ) -> Result<Arc<World>, litefs::store::StoreError> {
        let (data, mount) = (dir.join("data"), dir.join("mount"));
        fs::create_dir_all(&mount).expect("a directory");
        let store = Store::open(StoreOptions {
            dir: data.clone(),
            boot_id: boot.to_owned(),
            new_node: NodeId::new(7),
            clock: Arc::new(SystemClock),
            faults: faults.clone(),
        })?;
        let shm = Arc::new(ShmUse { root: data.join("dbs"), databases: Mutex::default() });
        store.set_mount(Arc::clone(&shm) as _);
        store.set_role(Role::Primary);
        let world = Arc::new(World {
            store: Arc::new(store),
            faults: faults.clone(),
            data,
            mount,
            shm,
            unsynced: Mutex::default(),
            opens: Mutex::default(),
            journals: Mutex::default(),
            hook: Mutex::default(),
            stepping: AtomicBool::new(false),
            unsound: AtomicBool::new(false),
        });
        Ok(world)
    }

    /// Calls `hook` before every step from now on, those inside the daemon too.
    pub fn at_every_step(self: &Arc<World>, hook: impl Fn(&World, &str) + Send + Sync + 'static) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(hook));
        let world = Arc::downgrade(self);
        self.faults.observe(move |point| {
            if let Some(world) = world.upgrade() {
                world.step(point);
            }
        });
    }

    /// No hook has failed.
    pub fn assert_sound(&self) {
        assert!(!self.unsound.load(Ordering::Acquire), "a check at some step failed");
    }

    /// No more calls.
    pub fn at_no_step(&self) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn step(&self, name: &str) {
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(hook) = hook else { return };
        // A step of the hook itself is none.
        if !self.stepping.swap(true, Ordering::AcqRel) {
            // A panic must not unwind through SQLite.
            let run = std::panic::AssertUnwindSafe(|| hook(self, name));
            if std::panic::catch_unwind(run).is_err() {
                self.unsound.store(true, Ordering::Release);
                self.at_no_step();
            }
            self.stepping.store(false, Ordering::Release);
        }
    }

    /// A new process that uses this mount.
    pub fn process(self: &Arc<World>) -> Arc<Process> {
        Process::start(Arc::clone(self))
    }

    /// Copies the data directory as it is now into `<dir>/data`.
    pub fn snapshot(&self, dir: &Path) {
        copy_dir(&self.data, &dir.join("data"));
    }

    /// The name below the mount of a path that an application gave.
    pub(crate) fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(self.mount.to_str()?)?.strip_prefix('/')
    }

    /// Makes the names that changed durable: FSYNCDIR.
    pub(crate) fn sync_names(&self) -> io::Result<()> {
        let dirs = std::mem::take(&mut *self.unsynced.lock().unwrap_or_else(PoisonError::into_inner));
        for changed in dirs {
            // A directory whose names changed, or a journal that is kept.
            if changed.exists() {
                File::open(changed)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// How many have a database's journal open, after `change`.
    pub(crate) fn journals(&self, db: &DbName, change: i32) -> u32 {
        let mut journals = self.journals.lock().unwrap_or_else(PoisonError::into_inner);
        let count = journals.entry(db.clone()).or_default();
        *count = count.saturating_add_signed(change);
        *count
    }

    pub(crate) fn names_changed(&self, file: &Path) {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        let dbs = self.data.join("dbs");
        unsynced.extend(
            file.ancestors().skip(1).take_while(|dir| dir.starts_with(&self.data)).map(Path::to_path_buf),
        );
        unsynced.insert(dbs);
    }

    /// Makes `<mount>/<name>` the same file as `backing`, for SQLite's own locks.
    pub(crate) fn link(&self, backing: &Path, name: &str) -> io::Result<()> {
        let link = self.mount.join(name);
        if let Some(dir) = link.parent() {
            fs::create_dir_all(dir)?;
        }
        let inode = fs::metadata(backing)?.ino();
        match fs::metadata(&link) {
            Ok(there) if there.ino() == inode => return Ok(()),
            Ok(_) => fs::remove_file(&link)?,
            Err(_) => {}
        }
        fs::hard_link(backing, link)
    }
}

/// One process: all its connections die together.
pub struct Process {
    world: Weak<World>,
    pub(crate) dead: AtomicBool,
    vfs: CString,
}

impl Process {
    fn start(world: Arc<World>) -> Arc<Process> {
        super::vfs::register(|vfs| Process {
            world: Arc::downgrade(&world),
            dead: AtomicBool::new(false),
            vfs,
        })
    }

    /// The node whose mount it uses; it must outlive the connections.
    pub(crate) fn world(&self) -> Arc<World> {
        self.world.upgrade().expect("the node outlives its connections")
    }

    /// Kills it: nothing that its connections do from now on has an effect but the
    /// release of their locks.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// Opens a connection.
    pub fn connect(&self, db: &str) -> Connection {
        self.try_connect(db).expect("a connection")
    }

    /// As `connect`, which must succeed.
    pub fn try_connect(&self, db: &str) -> rusqlite::Result<Connection> {
        let path = self.world().mount.join(db);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let connection = Connection::open_with_flags_and_vfs(path, flags, self.vfs.as_c_str())?;
        connection.execute_batch("PRAGMA temp_store = MEMORY;")?;
        Ok(connection)
    }
}

pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a listing") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// A directory for a test, in memory where there is room for it: what is durable is
/// decided by the tests, not by the disk.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = tempfile::Builder::new().prefix("litefs-proof-").tempdir_in(memory);
    dir.or_else(|_| tempfile::tempdir()).expect("a directory")
}
