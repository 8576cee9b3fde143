//! READDIR: the names in a directory. There is no OPENDIR (a round trip that fsync of
//! a directory would pay for), so a listing goes on where it stopped by a cookie that
//! depends on the name alone, and survives names that come and go.

use std::hash::{DefaultHasher, Hash, Hasher};

use fuser::{Errno, FileType};

use super::inodes::What;
use super::names;
use super::permissions::{Caller, READ};
use super::tree::Tree;
use super::{errno, virtuals};
use crate::db::FileKind;
use crate::store::Entry;
use crate::words::DbName;

/// What a listing says of a name of which the kernel has no inode yet, as libfuse does.
const UNKNOWN_INO: u64 = 0xffff_ffff;

/// A line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Goes on after this line.
    pub cookie: u64,
    pub ino: u64,
    pub kind: FileType,
    pub name: String,
}

impl Tree {
    /// The lines of directory `ino` after `cookie` (0: all).
    pub(super) fn list(&self, caller: Caller, ino: u64, cookie: u64) -> Result<(String, Vec<Line>), Errno> {
        let dir = self.node(ino)?;
        if !matches!(dir.what, What::Dir) {
            return Err(Errno::ENOTDIR);
        }
        self.may_dirs(caller, READ, &dir.path)?;
        let entries = self.store.entries(&dir.path).map_err(errno::report)?.ok_or(Errno::ENOENT)?;
        let mut names = Vec::new();
        for entry in entries {
            match entry {
                Entry::Dir(name) => names.push((FileType::Directory, name)),
                Entry::Database(name) => self.beside(&dir.path, name, &mut names),
            }
        }
        if dir.path.is_empty() {
            names.push((FileType::RegularFile, ".lag".to_owned()));
            if virtuals::primary(&self.store.role()).is_some() {
                names.push((FileType::RegularFile, ".primary".to_owned()));
            }
        }
        let parent = self.inodes.at(names::split(&dir.path).0).map_or(UNKNOWN_INO, |parent| parent.ino);
        let mut lines = vec![
            Line { cookie: 1, ino, kind: FileType::Directory, name: ".".to_owned() },
            Line { cookie: 2, ino: parent, kind: FileType::Directory, name: "..".to_owned() },
        ];
        lines.extend(names.into_iter().map(|(kind, name)| {
            let known = self.inodes.at(&names::join(&dir.path, &name));
            Line { cookie: cookie_of(&name), ino: known.map_or(UNKNOWN_INO, |node| node.ino), kind, name }
        }));
        lines.sort_by(|a, b| (a.cookie, &a.name).cmp(&(b.cookie, &b.name)));
        lines.retain(|line| line.cookie > cookie);
        Ok((dir.path.clone(), lines))
    }

    /// A database and those of its files that exist.
    fn beside(&self, dir: &str, name: String, names: &mut Vec<(FileType, String)>) {
        let path = names::join(dir, &name);
        let Some(db) = DbName::new(&path).ok().and_then(|name| self.store.database(&name)) else { return };
        for kind in [FileKind::Journal, FileKind::Wal, FileKind::Shm] {
            if db.has_file(kind) {
                names.push((FileType::RegularFile, format!("{name}{}", kind.suffix())));
            }
        }
        names.push((FileType::RegularFile, format!("{name}-pos")));
        names.push((FileType::RegularFile, name));
    }
}

/// A number above those of `.` and `..`, within a signed offset.
fn cookie_of(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    (hasher.finish() >> 1).max(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_depends_on_the_name_alone_and_is_a_valid_offset() {
        for name in ["a", "b", "a.db-journal", ".lag"] {
            let cookie = cookie_of(name);
            assert_eq!(cookie, cookie_of(name));
            assert!(cookie > 2 && i64::try_from(cookie).is_ok());
        }
        assert_ne!(cookie_of("a"), cookie_of("b"));
    }
}
