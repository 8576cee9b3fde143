//! The bytes of a change set as they come: in memory, or in a file once they are many.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::peer::wire::ChangeHead;

/// More bytes than this become a file.
const IN_MEMORY: usize = 8 << 20;

/// A change set that came whole. Its LTX is not verified yet.
#[derive(Debug)]
pub struct ReceivedChange {
    /// What it does.
    pub head: ChangeHead,
    /// Its bytes.
    pub ltx: Ltx,
}

/// An LTX that came.
#[derive(Debug)]
pub enum Ltx {
    /// In memory.
    Memory(Bytes),
    /// In a file, which goes when this is dropped.
    File(Spooled),
}

/// A file that goes when it is dropped.
#[derive(Debug)]
pub struct Spooled(PathBuf);

impl Spooled {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A change set that comes.
pub(super) struct Spool {
    pub head: ChangeHead,
    memory: Vec<u8>,
    file: Option<(File, Spooled)>,
    len: u64,
}

impl Spool {
    pub fn new(head: ChangeHead) -> Spool {
        Spool { head, memory: Vec::new(), file: None, len: 0 }
    }

    /// More bytes; `path` is where a file would be.
    pub fn push(&mut self, data: &[u8], path: &Path) -> io::Result<()> {
        self.len += data.len() as u64;
        if self.file.is_none() && self.memory.len() + data.len() > IN_MEMORY {
            let spooled = Spooled(path.to_owned());
            let mut file = File::create(path)?;
            file.write_all(&self.memory)?;
            self.memory = Vec::new();
            self.file = Some((file, spooled));
        }
        match &mut self.file {
            Some((file, _)) => file.write_all(data),
            None => {
                self.memory.extend_from_slice(data);
                Ok(())
            }
        }
    }

    /// The whole of it, if it has `len` bytes.
    pub fn finish(self, len: u64) -> Option<ReceivedChange> {
        let ltx = match self.file {
            Some((_, spooled)) => Ltx::File(spooled),
            None => Ltx::Memory(self.memory.into()),
        };
        (self.len == len).then_some(ReceivedChange { head: self.head, ltx })
    }
}
