//! Names below the mount and their places on the disk: databases, directories,
//! super-journals. Must not open databases.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Store, StoreError};
use crate::db::{DbError, Paths};
use crate::words::DbName;

/// A file in the backing directory of one that was removed.
const GONE: &str = "gone";

/// What is in a directory of the mount, journals and the like aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Dir(String),
    /// A database.
    Database(String),
}

impl Store {
    /// The backing directory of a directory of the mount; `None` if there is none.
    /// The root is `""`.
    pub fn dir_path(&self, path: &str) -> Option<PathBuf> {
        let backing = backing_dir(&self.shared.root, path)?;
        (backing.is_dir() && !self.is_gone(path, &backing)).then_some(backing)
    }

    /// Whether a directory was removed that is on the disk only for what dropped databases
    /// left in it. Not if one of them came back (from another node).
    fn is_gone(&self, path: &str, backing: &Path) -> bool {
        let within =
            |name: &DbName| name.as_str().strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        backing.join(GONE).exists() && !self.databases().iter().any(|database| within(database.name()))
    }

    /// What a directory of the mount holds; `None` if there is no such directory.
    pub fn entries(&self, dir: &str) -> Result<Option<Vec<Entry>>, DbError> {
        let Some(path) = self.dir_path(dir) else { return Ok(None) };
        let mut entries = Vec::new();
        for entry in fs::read_dir(&path).map_err(DbError::io("list", &path))? {
            let entry = entry.map_err(DbError::io("list", &path))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if let Some(name) = name.strip_prefix("d.") {
                if !self.is_gone(&below(dir, name), &entry.path()) {
                    entries.push(Entry::Dir(name.to_owned()));
                }
            } else if let Some(name) = name.strip_prefix("f.")
                && self.is_there(dir, name)
            {
                entries.push(Entry::Database(name.to_owned()));
            }
        }
        Ok(Some(entries))
    }

    fn is_there(&self, dir: &str, name: &str) -> bool {
        DbName::new(&below(dir, name)).is_ok_and(|name| self.database(&name).is_some())
    }

    /// Makes a directory of the mount.
    pub fn make_dir(&self, path: &str, mode: u32, uid: u32, gid: u32) -> Result<(), DbError> {
        DbName::new(path).map_err(|bad| DbError::BadPath { path: bad.name, why: bad.why })?;
        let Some(dir) = backing_dir(&self.shared.root, path) else {
            return Err(DbError::BadPath { path: path.to_owned(), why: "it is no path" });
        };
        let mode = mode & 0o7777;
        let comes_back = dir.is_dir() && self.is_gone(path, &dir);
        if comes_back {
            fs::set_permissions(&dir, Permissions::from_mode(mode)).map_err(DbError::io("create", &dir))?;
        } else {
            fs::DirBuilder::new().mode(mode).create(&dir).map_err(DbError::io("create", &dir))?;
        }
        let owned = std::os::unix::fs::chown(&dir, Some(uid), Some(gid));
        owned.map_err(DbError::io("change the owner of", &dir))?;
        if comes_back {
            fs::remove_file(dir.join(GONE)).map_err(DbError::io("create", dir))?;
        }
        Ok(())
    }

    /// Removes an empty directory of the mount. What dropped databases left in it
    /// (their positions, so that their TXIDs go on) keeps the directory on disk only.
    pub fn remove_dir(&self, path: &str) -> Result<(), DbError> {
        let Some(dir) = backing_dir(&self.shared.root, path) else {
            return Err(DbError::BadPath { path: path.to_owned(), why: "it is no path" });
        };
        let not_empty = self.entries(path)?.is_some_and(|entries| !entries.is_empty());
        let result = if not_empty {
            Err(std::io::Error::from_raw_os_error(libc::ENOTEMPTY))
        } else {
            match fs::remove_dir(&dir) {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                    fs::File::create(dir.join(GONE)).map(drop)
                }
                result => result,
            }
        };
        result.map_err(DbError::io("remove", dir))
    }

    /// The backing file of a super-journal (`<db>-mjXXXXXXXXX`, pager.c: the journal
    /// of a commit over several databases); `None` if the path does not name one.
    pub fn super_journal(&self, path: &str) -> Option<PathBuf> {
        let (db, suffix) = path.rsplit_once("-mj")?;
        let sound = suffix.len() >= 8 && suffix.bytes().all(|byte| byte.is_ascii_hexdigit());
        (sound && DbName::new(db).is_ok()).then(|| super_journal_path(&self.dir.join("super"), path))
    }
}

/// The path of `name` in `dir`; the root is `""`.
fn below(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn backing_dir(root: &Path, path: &str) -> Option<PathBuf> {
    let mut dir = root.to_path_buf();
    for component in path.split('/').filter(|component| !component.is_empty()) {
        if component.starts_with('.') {
            return None;
        }
        dir.push(format!("d.{component}"));
    }
    Some(dir)
}

pub(super) fn super_journal_path(dir: &Path, path: &str) -> PathBuf {
    dir.join(path.replace('%', "%25").replace('/', "%2F"))
}

/// The super-journals that are there, as paths below the mount.
pub(super) fn super_journals(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let name = entry.map_err(StoreError::io("list", dir))?.file_name();
        found.extend(name.to_str().map(|name| name.replace("%2F", "/").replace("%25", "%")));
    }
    Ok(found)
}

/// The names of all databases that have a directory below `root`.
pub(super) fn databases(root: &Path) -> Result<BTreeSet<DbName>, StoreError> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![(root.to_path_buf(), String::new())];
    while let Some((dir, prefix)) = dirs.pop() {
        for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let Ok(name) = entry.map_err(StoreError::io("list", &dir))?.file_name().into_string() else {
                continue;
            };
            if let Some(name) = name.strip_prefix("d.") {
                dirs.push((dir.join(format!("d.{name}")), format!("{prefix}{name}/")));
            } else if let Some(name) = name.strip_prefix("f.")
                && let Ok(name) = DbName::new(&format!("{prefix}{name}"))
                && Paths::new(root, &name).dir().is_dir()
            {
                found.insert(name);
            }
        }
    }
    Ok(found)
}
