//! UNLINK and RMDIR.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::Ordering;

use fuser::Errno;

use super::inodes::What;
use super::names::{self, Name};
use super::notify::{self, Note};
use super::permissions::{Caller, EXECUTE, WRITE};
use super::tree::{Found, Tree};
use super::{errno, inodes::Node};
use crate::db::FileKind;

/// Writes that are captured at once.
const FEW: u32 = 32;

impl Tree {
    /// UNLINK. May take long: the end of a journal is a commit.
    pub(super) fn unlink(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let (parent, path) = self.child(caller, parent, name)?;
        let node = match self.inodes.at(&path) {
            Some(node) => node,
            None => match self.find(&path)? {
                // The kernel looked it up before, or it would not ask; nothing holds
                // this lookup.
                Found::Entry(node, ..) => {
                    self.inodes.forget(node.ino, 1);
                    node
                }
                Found::Nothing(_) => return Err(Errno::ENOENT),
            },
        };
        self.may_remove(caller, &parent.path, &node)?;
        match &node.what {
            What::Dir => return Err(Errno::EISDIR),
            What::Pos(_) | What::Lock(_) | What::Primary | What::Lag => return Err(Errno::EACCES),
            What::SuperJournal(backing) => {
                std::fs::remove_file(backing).map_err(|error| errno::of_io(&error))?;
                self.unsynced.changed(&parent.path, backing.parent().unwrap_or(Path::new("/")));
            }
            What::File(db, FileKind::Journal) if node.is_unused() && !db.archive_first() => {
                db.retire_journal().map_err(errno::report)?;
                self.unsynced.changed(&parent.path, &db.path(FileKind::Journal));
            }
            What::File(db, kind) => {
                db.remove(*kind).map_err(errno::report)?;
                if *kind == FileKind::Journal {
                    self.spares.forget(&path);
                }
                if *kind == FileKind::Shm {
                    // Not before: what it says of the WAL was asked for a last time.
                    self.own.vanished(node.ino);
                }
                let backing = db.path(*kind);
                self.unsynced.changed(&parent.path, backing.parent().unwrap_or(Path::new("/")));
                if *kind == FileKind::Database {
                    self.forget_beside(parent.ino, &path);
                }
            }
        }
        self.inodes.remove(&path);
        Ok(())
    }

    /// Whether an unlink takes but microseconds: that of a journal after few writes. It
    /// captures them, and syncs nothing; another thread would cost more.
    pub(super) fn unlink_is_quick(&self, parent: u64, name: &OsStr) -> bool {
        let (Some(parent), Some(name)) = (self.inodes.get(parent), name.to_str()) else { return false };
        let Some(database) = name.strip_suffix(FileKind::Journal.suffix()) else { return false };
        let Some(node) = self.inodes.at(&names::join(&parent.path, database)) else { return false };
        node.writes.swap(0, Ordering::Relaxed) <= FEW
    }

    /// With the database went the files beside it; the kernel still believes in them.
    fn forget_beside(&self, parent: u64, database: &str) {
        for kind in [FileKind::Journal, FileKind::Wal, FileKind::Shm] {
            let path = format!("{database}{}", kind.suffix());
            self.spares.forget(&path);
            if let Some(node) = self.inodes.remove(&path) {
                if kind == FileKind::Shm {
                    self.own.vanished(node.ino);
                }
                let name = names::split(&path).1.to_owned();
                notify::post(&self.notes, Note::Entry { parent, name });
            }
        }
    }

    /// RMDIR.
    pub(super) fn rmdir(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let (parent, path) = self.child(caller, parent, name)?;
        let is_dir = self.store.dir_path(&path).is_some();
        if !is_dir {
            let database = match names::parse(&path) {
                Some(Name::File(db, _)) => self.store.database(&db),
                _ => None,
            };
            return Err(if database.is_some() { Errno::ENOTDIR } else { Errno::ENOENT });
        }
        if let Some(node) = self.inodes.at(&path) {
            self.may_remove(caller, &parent.path, &node)?;
        }
        self.store.remove_dir(&path).map_err(errno::report)?;
        self.inodes.remove(&path);
        Ok(())
    }

    fn may_remove(&self, caller: Caller, dir: &str, node: &Node) -> Result<(), Errno> {
        if !self.check || caller.uid == 0 {
            return Ok(());
        }
        self.may_dirs(caller, WRITE | EXECUTE, dir)?;
        let file = self.node_metadata(node).ok();
        if caller.may_unlink(file.as_ref(), &self.dir_metadata(dir)?) { Ok(()) } else { Err(Errno::EPERM) }
    }
}
