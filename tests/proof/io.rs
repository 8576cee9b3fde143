//! The methods of files that `vfs` opened. Must not know SQLite's file formats.

use std::ffi::{c_int, c_void};
use std::os::unix::fs::FileExt;
use std::slice;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use litefs::db::FileKind;
use rusqlite::ffi;

use super::vfs::{Open, What, code, remove};

/// A file, as SQLite holds it.
#[repr(C)]
pub(crate) struct Shim {
    pub base: ffi::sqlite3_file,
    pub open: *mut Open,
}

pub(crate) static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(reserved),
    xFileControl: Some(control),
    xSectorSize: Some(sector),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

fn shim<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Open {
    // SAFETY: `vfs::open` made this file; SQLite uses a file from one thread at a time.
    unsafe { &mut *(*file.cast::<Shim>()).open }
}

impl Open {
    fn is_dead(&self) -> bool {
        self.process.dead.load(Ordering::Acquire)
    }

    fn step(&self, what: &str) {
        let kind = match &self.what {
            What::File(_, kind) => kind.suffix(),
            What::Plain => "-mj",
        };
        self.process.world().step(&format!("{what} db{kind}"));
    }

    /// SQLite's own file and its methods.
    fn real(&mut self) -> Option<(*mut ffi::sqlite3_file, &'static ffi::sqlite3_io_methods)> {
        let file: *mut ffi::sqlite3_file = self.real.as_mut()?.as_mut_ptr().cast();
        // SAFETY: the unix VFS opened it; its tables of methods are static.
        unsafe { (*file).pMethods.as_ref() }.map(|methods| (file, methods))
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: `vfs::open` made the box; SQLite closes once.
    let mut open = unsafe { Box::from_raw((*file.cast::<Shim>()).open) };
    if let Some((real, methods)) = open.real()
        && let Some(close) = methods.xClose
    {
        // SAFETY: an open file of the unix VFS.
        unsafe { close(real) };
    }
    if let What::File(database, kind) = &open.what {
        let mut last = true;
        if *kind == FileKind::Journal {
            open.process.world().journals(database.name(), -1);
        }
        if *kind == FileKind::Database {
            let world = open.process.world();
            let mut opens = world.opens.lock().unwrap_or_else(PoisonError::into_inner);
            let count = opens.entry(database.name().clone()).or_default();
            *count = count.saturating_sub(1);
            last = *count == 0;
        }
        // The kernel sends both for a process that was killed, too.
        let _ = database.flush(*kind);
        database.close(*kind, last, open.wrote);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, len: c_int, at: i64) -> c_int {
    let (Ok(len), Ok(at)) = (usize::try_from(len), u64::try_from(at)) else { return ffi::SQLITE_IOERR_READ };
    // SAFETY: SQLite gives `len` bytes.
    shim(file).read(unsafe { slice::from_raw_parts_mut(to.cast(), len) }, at)
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, len: c_int, at: i64) -> c_int {
    let open = shim(file);
    open.step("write");
    if open.is_dead() {
        return ffi::SQLITE_IOERR_WRITE;
    }
    let (Ok(len), Ok(at)) = (usize::try_from(len), u64::try_from(at)) else { return ffi::SQLITE_IOERR_WRITE };
    // SAFETY: SQLite gives `len` bytes.
    let data = unsafe { slice::from_raw_parts(from.cast(), len) };
    open.wrote = true;
    match &open.what {
        What::File(database, FileKind::Database) => database
            .write(FileKind::Database, at, data)
            .map_or_else(|error| code(&error, ffi::SQLITE_IOERR_WRITE), |()| ffi::SQLITE_OK),
        _ => open.file.write_all_at(data, at).map_or(ffi::SQLITE_IOERR_WRITE, |()| ffi::SQLITE_OK),
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, to: i64) -> c_int {
    let open = shim(file);
    open.step("truncate");
    let Ok(to) = u64::try_from(to) else { return ffi::SQLITE_IOERR_TRUNCATE };
    if open.is_dead() {
        return ffi::SQLITE_IOERR_TRUNCATE;
    }
    match &open.what {
        What::File(database, kind) => database
            .resize(*kind, to)
            .map_or_else(|error| code(&error, ffi::SQLITE_IOERR_TRUNCATE), |()| ffi::SQLITE_OK),
        What::Plain => open.file.set_len(to).map_or(ffi::SQLITE_IOERR_TRUNCATE, |()| ffi::SQLITE_OK),
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    let open = shim(file);
    open.step("sync");
    if open.is_dead() {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    let result = match &open.what {
        What::File(database, kind) => database
            .sync(*kind)
            .map_or_else(|error| code(&error, ffi::SQLITE_IOERR_FSYNC), |()| ffi::SQLITE_OK),
        What::Plain => open.file.sync_all().map_or(ffi::SQLITE_IOERR_FSYNC, |()| ffi::SQLITE_OK),
    };
    // As unixSync: a new journal's name is made durable with its content.
    if result == ffi::SQLITE_OK && std::mem::take(&mut open.fresh) {
        return open.process.world().sync_names().map_or(ffi::SQLITE_IOERR_DIR_FSYNC, |()| ffi::SQLITE_OK);
    }
    result
}

unsafe extern "C" fn size(file: *mut ffi::sqlite3_file, out: *mut i64) -> c_int {
    match shim(file).file.metadata() {
        Ok(found) => {
            // SAFETY: SQLite gives a place for the answer.
            unsafe { *out = i64::try_from(found.len()).unwrap_or(i64::MAX) };
            ffi::SQLITE_OK
        }
        Err(_) => ffi::SQLITE_IOERR_FSTAT,
    }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    let open = shim(file);
    if open.is_dead() {
        return ffi::SQLITE_IOERR_LOCK;
    }
    match open.real() {
        // SAFETY: an open file of the unix VFS.
        Some((real, methods)) => methods.xLock.map_or(0, |lock| unsafe { lock(real, level) }),
        None => ffi::SQLITE_OK,
    }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    match shim(file).real() {
        // SAFETY: an open file of the unix VFS.
        Some((real, methods)) => methods.xUnlock.map_or(0, |unlock| unsafe { unlock(real, level) }),
        None => ffi::SQLITE_OK,
    }
}

unsafe extern "C" fn reserved(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    match shim(file).real() {
        // SAFETY: an open file of the unix VFS.
        Some((real, methods)) => methods.xCheckReservedLock.map_or(0, |check| unsafe { check(real, out) }),
        None => ffi::SQLITE_OK,
    }
}

unsafe extern "C" fn control(_: *mut ffi::sqlite3_file, _op: c_int, _arg: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector(_: *mut ffi::sqlite3_file) -> c_int {
    4096
}

unsafe extern "C" fn characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    // What the unix VFS says of every file system.
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    len: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    let open = shim(file);
    if open.is_dead() {
        return ffi::SQLITE_IOERR_SHMMAP;
    }
    if !open.shm {
        let What::File(database, _) = &open.what else { return ffi::SQLITE_IOERR_SHMOPEN };
        let how = litefs::db::OpenHow { write: true, create: true, mode: 0o644, ..Default::default() };
        let name = format!("{}{}", database.name(), FileKind::Shm.suffix());
        let world = open.process.world();
        if database.open(FileKind::Shm, how).is_err()
            || world.link(&database.path(FileKind::Shm), &name).is_err()
        {
            return ffi::SQLITE_IOERR_SHMOPEN;
        }
        world.shm.open(database.name());
        open.shm = true;
    }
    match open.real() {
        // SAFETY: an open file of the unix VFS, SQLite's arguments.
        Some((real, methods)) => {
            methods.xShmMap.map_or(0, |map| unsafe { map(real, region, len, extend, out) })
        }
        None => ffi::SQLITE_IOERR_SHMMAP,
    }
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, at: c_int, count: c_int, flags: c_int) -> c_int {
    let open = shim(file);
    let locks = flags & ffi::SQLITE_SHM_LOCK != 0;
    if open.is_dead() && locks {
        return ffi::SQLITE_IOERR_SHMLOCK;
    }
    let Some((real, methods)) = open.real() else { return ffi::SQLITE_IOERR_SHMLOCK };
    // SAFETY: an open file of the unix VFS, SQLite's arguments.
    let result = methods.xShmLock.map_or(0, |lock| unsafe { lock(real, at, count, flags) });
    // The write lock is the first one (wal.c: WAL_WRITE_LOCK).
    if at == 0
        && result == ffi::SQLITE_OK
        && flags & ffi::SQLITE_SHM_EXCLUSIVE != 0
        && let Some(name) = open.name()
    {
        open.process.world().shm.write_lock(name, locks);
    }
    result
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    if let Some((real, methods)) = shim(file).real()
        && let Some(barrier) = methods.xShmBarrier
    {
        // SAFETY: an open file of the unix VFS.
        unsafe { barrier(real) };
    }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    let open = shim(file);
    if !std::mem::take(&mut open.shm) {
        return ffi::SQLITE_OK;
    }
    if let Some((real, methods)) = open.real()
        && let Some(unmap) = methods.xShmUnmap
    {
        // SAFETY: an open file of the unix VFS. The file is unlinked below.
        unsafe { unmap(real, 0) };
    }
    let Some(name) = open.name().cloned() else { return ffi::SQLITE_OK };
    if delete != 0 && !open.is_dead() {
        open.step("unlink shm of");
        let _ = remove(&open.process, &name, FileKind::Shm);
        let _ = std::fs::remove_file(open.process.world().mount.join(format!("{name}-shm")));
    }
    open.process.world().shm.close(&name);
    ffi::SQLITE_OK
}
