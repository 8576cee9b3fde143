//! Tells the kernel what it must no longer believe. On a thread of its own that holds
//! no lock: within a READ or a partial WRITE of the same page the kernel waits for the
//! page, which the request holds, for ever; and dropping a name waits for the
//! directory's lock, which an UNLINK holds until it is answered.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use fuser::{INodeNo, Notifier};

use super::inodes::{Inodes, ROOT, What};
use super::names;
use crate::db::FileKind;
use crate::words::DbName;

/// Something that the kernel must no longer believe.
#[derive(Debug)]
pub(super) enum Note {
    /// Bytes (`len` 0: to the end) and size of a database, or whether there is one.
    Database { db: DbName, offset: u64, len: u64 },
    /// What a name in a directory means, or that it means nothing.
    Entry { parent: u64, name: String },
    /// Somebody waits for everything before to be told.
    Reached(Sender<()>),
    /// There is nothing more to tell.
    Stop,
}

/// What is sent to the kernel.
#[derive(Debug, PartialEq, Eq)]
enum Invalid {
    Inode { ino: u64, offset: u64, len: u64 },
    Entry { parent: u64, name: String },
}

/// Starts the thread; it ends at [`Note::Stop`].
pub(super) fn start(
    notes: Receiver<Note>,
    notifier: Notifier,
    inodes: Arc<Inodes>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("litefs-notify".to_owned()).spawn(move || {
        for note in notes {
            let invalid = match note {
                Note::Stop => return,
                Note::Reached(waiting) => {
                    // Who no longer waits need not know.
                    let _ = waiting.send(());
                    continue;
                }
                Note::Entry { parent, name } => vec![Invalid::Entry { parent, name }],
                Note::Database { db, offset, len } => changed(&inodes, &db, offset, len),
            };
            for invalid in invalid {
                if let Err(error) = send(&notifier, &invalid) {
                    // ENODEV and ENOTCONN: the mount has ended.
                    tracing::debug!("cannot tell the kernel {invalid:?}: {error}");
                }
            }
        }
    })
}

/// What a change of a database makes invalid.
fn changed(inodes: &Inodes, db: &DbName, offset: u64, len: u64) -> Vec<Invalid> {
    match inodes.at(db.as_str()) {
        Some(node) => match &node.what {
            What::File(database, _) if !database.exists() => dropped(inodes, db),
            _ => vec![Invalid::Inode { ino: node.ino, offset, len }],
        },
        None => appeared(inodes, db),
    }
}

/// The kernel may remember that there is no such database, or no such directory.
fn appeared(inodes: &Inodes, db: &DbName) -> Vec<Invalid> {
    let mut path = db.as_str();
    loop {
        let (dir, name) = names::split(path);
        let parent = if dir.is_empty() { Some(ROOT) } else { inodes.at(dir).map(|node| node.ino) };
        if let Some(parent) = parent {
            let listing = Invalid::Inode { ino: parent, offset: 0, len: 0 };
            return vec![Invalid::Entry { parent, name: name.to_owned() }, listing];
        }
        path = dir;
    }
}

/// The files of a database that was dropped.
fn dropped(inodes: &Inodes, db: &DbName) -> Vec<Invalid> {
    let mut invalid = Vec::new();
    for kind in FileKind::ALL {
        let path = format!("{db}{}", kind.suffix());
        inodes.remove(&path);
        let (dir, name) = names::split(&path);
        let Some(parent) = inodes.at(dir) else { continue };
        invalid.push(Invalid::Entry { parent: parent.ino, name: name.to_owned() });
    }
    invalid
}

fn send(notifier: &Notifier, invalid: &Invalid) -> io::Result<()> {
    match invalid {
        Invalid::Inode { ino, offset, len } => {
            let offset = i64::try_from(*offset).unwrap_or(i64::MAX);
            notifier.inval_inode(INodeNo(*ino), offset, i64::try_from(*len).unwrap_or(0))
        }
        Invalid::Entry { parent, name } => notifier.inval_entry(INodeNo(*parent), OsStr::new(name)),
    }
}

/// Queues a note.
pub(super) fn post(notes: &Sender<Note>, note: Note) {
    if notes.send(note).is_err() {
        tracing::debug!("the mount has ended: the kernel need not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_database_invalidates_its_name_in_the_deepest_known_directory() {
        let inodes = Inodes::new();
        let db = DbName::new("t/u/a.db").expect("a name");
        let entry = |parent, name: &str| Invalid::Entry { parent, name: name.to_owned() };
        assert_eq!(changed(&inodes, &db, 0, 0)[0], entry(ROOT, "t"));
        let dir = inodes.intern("t", What::Dir);
        assert_eq!(changed(&inodes, &db, 0, 0)[0], entry(dir.ino, "u"));
    }
}
