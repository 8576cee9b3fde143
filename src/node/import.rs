//! Importing a database: the file is checked, then copied into the mount by SQLite
//! itself (its backup API), in a process of its own, so that applications see one
//! transaction under SQLite's own locks. Must not write database files.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use crate::peer::ServiceError;
use crate::sqlite::header;

/// How long the copy waits for applications that use the database.
const BUSY: Duration = Duration::from_secs(30);

/// A file that is removed when dropped, with what SQLite puts beside it.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let mut path = self.0.clone().into_os_string();
            path.push(suffix);
            let _ = fs::remove_file(path);
        }
    }
}

/// Takes `body` in and copies it over the database at `target`, a path in the mount.
pub(super) fn import(
    data: &Path,
    unique: u64,
    target: &Path,
    body: &mut dyn Read,
) -> Result<(), ServiceError> {
    let temporary = Temporary(data.join(format!("import-{unique:016x}")));
    let failed = |what: &str, error: std::io::Error| {
        ServiceError::Failed(format!("{what} {}: {error}", temporary.0.display()))
    };
    let mut file = File::create(&temporary.0).map_err(|error| failed("creating", error))?;
    copy_body(body, &mut file)?;
    drop(file);
    let mut first = [0; header::HEADER_LEN];
    let read =
        File::open(&temporary.0).and_then(|file| crate::sqlite::ReadAt::read_upto(&file, &mut first, 0));
    let read = read.map_err(|error| failed("reading", error))?;
    if header::Header::parse(first.get(..read).unwrap_or_default()).is_none() {
        return Err(ServiceError::BadInput(
            "what was sent is no SQLite database (its header is not readable); nothing was changed"
                .to_owned(),
        ));
    }
    copy_in_child(&temporary.0, target)
}

fn copy_body(body: &mut dyn Read, file: &mut File) -> Result<(), ServiceError> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => file.write_all(&buffer[..read]).map_err(|error| {
                ServiceError::Failed(format!("keeping what was sent failed: {error}; nothing was changed"))
            })?,
            Err(error) => {
                return Err(ServiceError::BadInput(format!(
                    "the upload ended early ({error}); nothing was changed"
                )));
            }
        }
    }
}

fn copy_in_child(source: &Path, target: &Path) -> Result<(), ServiceError> {
    if let Some(dir) = target.parent() {
        fs::create_dir_all(dir)
            .map_err(|error| ServiceError::BadInput(format!("creating {}: {error}", dir.display())))?;
    }
    let program = std::env::current_exe()
        .map_err(|error| ServiceError::Failed(format!("finding the litefs program: {error}")))?;
    let output = Command::new(program)
        .arg("internal-copy")
        .args([source, target])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| ServiceError::Failed(format!("starting the copy: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ServiceError::Failed(format!(
        "copying the database into the mount failed: {why}; nothing was changed"
    )))
}

/// The hidden command `internal-copy`: copies database `source` over `target` as one
/// transaction.
pub fn internal_copy(source: &Path, target: &Path) -> Result<(), rusqlite::Error> {
    let from = Connection::open_with_flags(source, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let pages: i64 = from.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    let mut to = Connection::open(target)?;
    to.busy_timeout(BUSY)?;
    let now: i64 = to.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    let mode: String = to.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    if now != pages && mode == "wal" {
        // The page size of a database in WAL mode cannot change.
        to.query_row("PRAGMA journal_mode=DELETE", [], |_| Ok(()))?;
    }
    let deadline = std::time::Instant::now() + BUSY;
    let backup = Backup::new(&from, &mut to)?;
    loop {
        match backup.step(-1)? {
            StepResult::Done => return Ok(()),
            _ if std::time::Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
                return Err(rusqlite::Error::SqliteFailure(
                    busy,
                    Some("applications keep the database locked; try again when they are idle".to_owned()),
                ));
            }
        }
    }
}
