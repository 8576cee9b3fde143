//! A SQLite VFS that does with a store what the mount does: writes, truncates, syncs
//! and unlinks of the database go to the daemon, journal and WAL in passthrough,
//! locks and wal-index to the kernel (here: SQLite's own unix VFS on the same inode).

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use litefs::db::{Database, DbError, FileKind, LogError, OpenHow};
use litefs::words::DbName;
use rusqlite::ffi;

use super::io::{METHODS, Shim};
use super::world::Process;

/// An open file.
pub(crate) struct Open {
    pub process: Arc<Process>,
    pub what: What,
    pub file: Arc<File>,
    /// Created by this open: its name is made durable by its first sync.
    pub fresh: bool,
    pub wrote: bool,
    /// SQLite's own file on the same inode (of a database: it has the locks).
    pub real: Option<Vec<u64>>,
    pub shm: bool,
}

pub(crate) enum What {
    File(Arc<Database>, FileKind),
    /// A super-journal.
    Plain,
}

/// The result code for an error of the daemon, by way of the errno that the mount
/// would answer.
pub(crate) fn code(error: &DbError, otherwise: c_int) -> c_int {
    println!("the daemon refuses: {error}");
    let source = match error {
        DbError::Io { source, .. } | DbError::Log(LogError::Io { source, .. }) => source,
        DbError::ReadOnly { .. } => return ffi::SQLITE_READONLY,
        _ => return otherwise,
    };
    if source.raw_os_error() == Some(libc::ENOSPC) { ffi::SQLITE_FULL } else { otherwise }
}

/// SQLite's own VFS.
pub(crate) fn unix() -> *mut ffi::sqlite3_vfs {
    // SAFETY: the name is a C string; SQLite initialises itself.
    unsafe { ffi::sqlite3_vfs_find(c"unix".as_ptr()) }
}

/// Registers a VFS for one process. It stays registered to the end of the test run.
pub(crate) fn register(process: impl FnOnce(CString) -> Process) -> Arc<Process> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = CString::new(format!("mount-{number}")).expect("no zero in it");
    let process = Arc::new(process(name.clone()));
    // SAFETY: the unix VFS exists and is never changed; a copy of its table of
    // functions is a valid table.
    let mut vfs = unsafe { ptr::read(unix()) };
    vfs.iVersion = 1;
    vfs.szOsFile = c_int::try_from(size_of::<Shim>()).expect("a small type");
    vfs.pNext = ptr::null_mut();
    vfs.zName = name.into_raw();
    // The VFS has its own count of the process, for ever: connections may use it.
    vfs.pAppData = Arc::into_raw(Arc::clone(&process)).cast_mut().cast();
    vfs.xOpen = Some(open);
    vfs.xDelete = Some(delete);
    vfs.xAccess = Some(access);
    vfs.xFullPathname = Some(full_path);
    // SAFETY: the table lives for ever, as does what it points to.
    let result = unsafe { ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 0) };
    assert_eq!(result, ffi::SQLITE_OK, "a vfs is registered");
    process
}

/// The process behind a VFS.
fn process_of(vfs: *mut ffi::sqlite3_vfs) -> Arc<Process> {
    // SAFETY: `pAppData` is an `Arc<Process>` that `register` leaked.
    unsafe {
        let process = (*vfs).pAppData.cast_const().cast::<Process>();
        Arc::increment_strong_count(process);
        Arc::from_raw(process)
    }
}

fn path_of<'a>(name: *const c_char) -> &'a str {
    // SAFETY: SQLite passes a C string that outlives the call.
    unsafe { CStr::from_ptr(name) }.to_str().expect("a path in UTF-8")
}

/// What a path below the mount is.
enum Place {
    File(DbName, FileKind),
    Super(PathBuf),
}

fn place(process: &Process, path: &str) -> Option<Place> {
    let below = process.world().below(path)?;
    if let Some(path) = process.world().store.super_journal(below) {
        return Some(Place::Super(path));
    }
    for kind in [FileKind::Journal, FileKind::Wal, FileKind::Shm] {
        if let Some(name) = below.strip_suffix(kind.suffix()) {
            return Some(Place::File(DbName::new(name).ok()?, kind));
        }
    }
    Some(Place::File(DbName::new(below).ok()?, FileKind::Database))
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives `szOsFile` bytes, and closes only if the methods are set.
    unsafe { (*file).pMethods = ptr::null() };
    if name.is_null() {
        return ffi::SQLITE_CANTOPEN;
    }
    let process = process_of(vfs);
    let path = path_of(name);
    process.world().step(&format!("open {path}"));
    if process.dead.load(Ordering::Acquire) {
        return ffi::SQLITE_IOERR;
    }
    let opened = match place(&process, path) {
        Some(Place::File(db, kind)) => open_file(&process, &db, kind, flags, name),
        Some(Place::Super(path)) => open_super(&process, path),
        None => Err(ffi::SQLITE_CANTOPEN),
    };
    match opened {
        Ok(opened) => {
            // SAFETY: `file` has room for a `Shim`, see `register`.
            unsafe {
                ptr::write(
                    file.cast::<Shim>(),
                    Shim {
                        base: ffi::sqlite3_file { pMethods: &raw const METHODS },
                        open: Box::into_raw(Box::new(opened)),
                    },
                );
                if !out.is_null() {
                    *out = flags;
                }
            }
            ffi::SQLITE_OK
        }
        Err(code) => code,
    }
}

fn open_file(
    process: &Arc<Process>,
    name: &DbName,
    kind: FileKind,
    flags: c_int,
    path: ffi::sqlite3_filename,
) -> Result<Open, c_int> {
    let world = process.world();
    let cannot = |error: DbError| code(&error, ffi::SQLITE_CANTOPEN);
    let create = flags & ffi::SQLITE_OPEN_CREATE != 0;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let database = match world.store.database(name) {
        Some(database) => database,
        None if create && kind == FileKind::Database => {
            world.store.create(name, 0o644, uid, gid).map_err(cannot)?
        }
        None => return Err(ffi::SQLITE_CANTOPEN),
    };
    let backing = database.path(kind);
    let fresh = kind != FileKind::Database && !database.has_file(kind);
    let kept = fresh && backing.exists();
    let how = OpenHow {
        write: flags & ffi::SQLITE_OPEN_READWRITE != 0,
        create: create && fresh,
        exclusive: flags & ffi::SQLITE_OPEN_EXCLUSIVE != 0,
        truncate: false,
        mode: 0o644,
    };
    let file = database.open(kind, how).map_err(cannot)?;
    if !kept {
        world.names_changed(&backing);
    }
    if kind == FileKind::Journal {
        world.journals(name, 1);
    }
    let mut real = None;
    if kind == FileKind::Database {
        world.link(&backing, name.as_str()).map_err(|_| ffi::SQLITE_CANTOPEN)?;
        real = Some(open_real(path, flags)?);
        *world.opens.lock().unwrap_or_else(PoisonError::into_inner).entry(name.clone()).or_default() += 1;
    }
    let what = What::File(database, kind);
    Ok(Open { process: Arc::clone(process), what, file, fresh, wrote: false, real, shm: false })
}

/// SQLite's own file for locks and wal-index.
fn open_real(path: ffi::sqlite3_filename, flags: c_int) -> Result<Vec<u64>, c_int> {
    // SAFETY: the memory is aligned and as large as the unix VFS asks for, the path is
    // the one that SQLite gave, which outlives the file.
    unsafe {
        let unix = unix();
        let words = usize::try_from((*unix).szOsFile).map_err(|_| ffi::SQLITE_NOMEM)?.div_ceil(8);
        let mut memory = vec![0u64; words];
        let open = (*unix).xOpen.ok_or(ffi::SQLITE_CANTOPEN)?;
        match open(unix, path, memory.as_mut_ptr().cast(), flags, ptr::null_mut()) {
            ffi::SQLITE_OK => Ok(memory),
            error => Err(error),
        }
    }
}

fn open_super(process: &Arc<Process>, path: PathBuf) -> Result<Open, c_int> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map(Arc::new).map_err(|_| ffi::SQLITE_CANTOPEN)?;
    process.world().names_changed(&path);
    Ok(Open {
        process: Arc::clone(process),
        what: What::Plain,
        file,
        fresh: true,
        wrote: false,
        real: None,
        shm: false,
    })
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    let process = process_of(vfs);
    let path = path_of(name);
    process.world().step(&format!("unlink {path}"));
    if process.dead.load(Ordering::Acquire) {
        return ffi::SQLITE_IOERR;
    }
    let removed = match place(&process, path) {
        Some(Place::File(db, kind)) => remove(&process, &db, kind),
        Some(Place::Super(path)) => {
            process.world().names_changed(&path);
            fs::remove_file(path).map_err(|_| ffi::SQLITE_IOERR_DELETE)
        }
        None => Err(ffi::SQLITE_IOERR_DELETE),
    };
    process.world().step("unlinked");
    match removed {
        Ok(()) if sync != 0 => process.world().sync_names().map_or(ffi::SQLITE_IOERR_DIR_FSYNC, |()| 0),
        Ok(()) => ffi::SQLITE_OK,
        Err(code) => code,
    }
}

/// Unlinks a file of a database.
pub(crate) fn remove(process: &Process, name: &DbName, kind: FileKind) -> Result<(), c_int> {
    let database = process.world().store.database(name).ok_or(ffi::SQLITE_IOERR_DELETE_NOENT)?;
    let backing = database.path(kind);
    if !database.has_file(kind) {
        return Err(ffi::SQLITE_IOERR_DELETE_NOENT);
    }
    let world = process.world();
    let removed = if kind == FileKind::Journal && world.journals(name, 0) == 0 {
        world.unsynced.lock().unwrap_or_else(PoisonError::into_inner).insert(backing);
        database.retire_journal()
    } else {
        world.names_changed(&backing);
        database.remove(kind)
    };
    removed.map_err(|error| code(&error, ffi::SQLITE_IOERR_DELETE))
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let process = process_of(vfs);
    let path = match place(&process, path_of(name)) {
        Some(Place::File(db, kind)) => {
            let database = process.world().store.database(&db);
            database.filter(|db| !db.is_retired(kind)).map(|db| db.path(kind))
        }
        Some(Place::Super(path)) => Some(path),
        None => None,
    };
    let found = path.and_then(|path| fs::metadata(path).ok());
    // As unixAccess: an empty file does not exist.
    let there = found.is_some_and(|file| flags != ffi::SQLITE_ACCESS_EXISTS || file.len() > 0);
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *out = c_int::from(there) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_path(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    room: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite gives `room` bytes at `out`.
    unsafe {
        let bytes = CStr::from_ptr(name).to_bytes_with_nul();
        if bytes.len() > usize::try_from(room).unwrap_or(0) {
            return ffi::SQLITE_CANTOPEN;
        }
        ptr::copy_nonoverlapping(bytes.as_ptr().cast(), out, bytes.len());
    }
    ffi::SQLITE_OK
}

impl Open {
    /// Reads into SQLite's buffer; zeroes beyond the end, as it asks for.
    pub(crate) fn read(&self, into: &mut [u8], offset: u64) -> c_int {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(_) => return ffi::SQLITE_IOERR_READ,
            }
        }
        into[done..].fill(0);
        if done < into.len() { ffi::SQLITE_IOERR_SHORT_READ } else { ffi::SQLITE_OK }
    }

    pub(crate) fn name(&self) -> Option<&DbName> {
        match &self.what {
            What::File(database, _) => Some(database.name()),
            What::Plain => None,
        }
    }
}
