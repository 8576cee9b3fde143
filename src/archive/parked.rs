//! Branches that lost, kept in the archive too: each a database file, compressed, and
//! a description beside it that is put last. Must not decide what is parked.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::ArchiveError;
use super::load::in_parallel;
use super::spool::SpoolWriter;
use super::{Archive, keys};
use crate::object::PutCond;
use crate::words::{DbName, NodeId, Pos, Timestamp};

/// As fast as a disk: nobody may ever ask for it.
const LEVEL: i32 = 1;

/// A branch that lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostBranch {
    /// Its id; in the data directory that it comes from it has the same.
    pub id: String,
    /// The database.
    pub db: DbName,
    /// Where it stood.
    pub pos: Pos,
    /// Where it left the archive's chain, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Pos>,
    /// When it was parked.
    pub at: Timestamp,
    /// Whose it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The size of the database file in bytes; `None`: the branch had dropped it.
    pub size: Option<u64>,
    /// The size of what is stored of it.
    #[serde(default)]
    pub stored: u64,
}

impl LostBranch {
    /// How many transactions it has that the archive's chain has not, if that is known.
    pub fn transactions(&self) -> Option<u64> {
        Some(self.pos.txid.get().saturating_sub(self.from?.txid.get()))
    }
}

impl Archive {
    /// The branches that lost, the oldest first.
    ///
    /// # Errors
    /// `Damaged` if a description cannot be read.
    pub fn lost_branches(&self) -> Result<Vec<LostBranch>, ArchiveError> {
        let listed = self.store.list(keys::PARKED, None)?;
        let notes: Vec<String> =
            listed.into_iter().map(|info| info.key).filter(|key| key.ends_with(keys::NOTE)).collect();
        let mut branches = Vec::with_capacity(notes.len());
        for read in in_parallel(self.options.parallel, &notes, |key| self.lost_branch(key)) {
            branches.extend(read?);
        }
        branches.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
        Ok(branches)
    }

    /// The branch with this description; `None` if it has expired meanwhile.
    fn lost_branch(&self, key: &str) -> Result<Option<LostBranch>, ArchiveError> {
        let Some(object) = self.store.get(key)? else { return Ok(None) };
        serde_json::from_slice(&object.body).map(Some).map_err(|error| ArchiveError::damaged(key, error))
    }

    /// Keeps a branch whose database file is `file`. What is there of it from an earlier
    /// attempt is replaced.
    ///
    /// # Errors
    /// Try again later; the branch is not listed then.
    pub fn keep_branch(&self, branch: &LostBranch, file: Option<&Path>) -> Result<(), ArchiveError> {
        let mut note = branch.clone();
        if let Some(file) = file {
            let attempt = format!("compressing {}", file.display());
            let spooled = self.compress(file).map_err(ArchiveError::local(attempt))??;
            self.pass("archive.park")?;
            self.store.put_file(&keys::parked(branch.at, &branch.id), spooled.path())?;
            note.stored = spooled.size();
        }
        let attempt = format!("describing branch {}", branch.id);
        let text = serde_json::to_vec_pretty(&note)
            .map_err(|error| ArchiveError::local(attempt)(io::Error::other(error)))?;
        let key = keys::parked_note(branch.at, &branch.id);
        self.store.put(&key, text.into(), PutCond::Always)?;
        Ok(())
    }

    fn compress(&self, file: &Path) -> io::Result<Result<super::Spooled, ArchiveError>> {
        let mut file = File::open(file)?;
        let writer = match SpoolWriter::create(self) {
            Ok(writer) => writer,
            Err(error) => return Ok(Err(error)),
        };
        let mut encoder = zstd::stream::write::Encoder::new(writer, LEVEL)?;
        encoder.include_checksum(true)?;
        io::copy(&mut file, &mut encoder)?;
        Ok(encoder.finish()?.finish())
    }

    /// Writes a branch's database file to `into`, and checks that it is whole.
    ///
    /// # Errors
    /// `Damaged` if it is not.
    pub fn take_branch(&self, branch: &LostBranch, into: &mut dyn io::Write) -> Result<(), ArchiveError> {
        let key = keys::parked(branch.at, &branch.id);
        let mut reader = self.reader(&key, branch.stored);
        let copied = zstd::stream::read::Decoder::new(&mut reader)
            .and_then(|mut decoder| io::copy(&mut decoder, into));
        match (copied, reader.error.take()) {
            (_, Some(error)) => Err(error.into()),
            (Err(error), None) => Err(ArchiveError::damaged(&key, error)),
            (Ok(size), None) if Some(size) != branch.size => {
                Err(ArchiveError::damaged(&key, format!("it holds {size} bytes, not {:?}", branch.size)))
            }
            (Ok(_), None) => Ok(()),
        }
    }

    /// Deletes the branches that were parked at `until` or before; returns how many
    /// objects.
    pub(super) fn expire_branches(&self, until: Timestamp) -> Result<u64, ArchiveError> {
        let listed = self.store.list(keys::PARKED, None)?;
        let is_old = |key: &String| keys::parse_parked(key).is_some_and(|at| at <= until);
        let mut old: Vec<String> = listed.into_iter().map(|info| info.key).filter(is_old).collect();
        // Descriptions first: what is listed can be exported.
        old.sort_by_key(|key| !key.ends_with(keys::NOTE));
        for key in &old {
            self.store.delete(key)?;
        }
        Ok(old.len() as u64)
    }
}
