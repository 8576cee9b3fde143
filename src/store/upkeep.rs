//! Upkeep of the data directory: checkpoints of the local state, and which files of
//! the change log are still needed. Must not decide what is published.

use std::time::{Duration, SystemTime};

use super::{Store, StoreError};
use crate::db::Place;

/// How long local change sets are kept after the archive has them.
#[derive(Clone, Copy, Debug)]
pub struct LogRetention {
    /// At least this long.
    pub age: Duration,
    /// But no more than this many bytes.
    pub size: Option<u64>,
}

impl Store {
    /// Lets every database stand by itself, so that the log before now is not needed
    /// at the next start.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        let from = self.shared.log.end();
        for database in self.all() {
            database.checkpoint()?;
        }
        self.node_file().replay_from = from;
        self.write_node_file()
    }

    /// Does what the log's growth asks for: a checkpoint when a file of it is full,
    /// and the removal of files that nobody needs.
    pub fn keep_log(&self, retention: LogRetention) -> Result<(), StoreError> {
        if self.shared.log.end().file > self.node_file().replay_from.file {
            self.checkpoint()?;
        }
        let files = self.shared.log.files();
        if files.len() < 2 {
            return Ok(());
        }
        let unpublished = self.commits.oldest().map(|commit| commit.place);
        let copies = self.all().iter().filter_map(|database| database.oldest_needed()).min();
        let needed = [Some(self.node_file().replay_from), unpublished, copies];
        let first = needed.into_iter().flatten().min().unwrap_or_default().file;
        let keep_from =
            first_kept(&files, first, retention.size, |number| self.is_older(number, retention.age));
        Ok(self.shared.log.remove_before(keep_from)?)
    }

    fn is_older(&self, number: u64, age: Duration) -> bool {
        let path = self.dir.join("log").join(format!("{number:016x}.log"));
        let modified = std::fs::metadata(path).and_then(|file| file.modified());
        modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|passed| passed > age))
    }

    /// Where the log ends.
    pub fn log_end(&self) -> Place {
        self.shared.log.end()
    }
}

/// The first file to keep: none from `needed` on goes; of those before it, what is
/// old or makes the whole larger than `size`.
fn first_kept(files: &[(u64, u64)], needed: u64, size: Option<u64>, old: impl Fn(u64) -> bool) -> u64 {
    let mut total: u64 = files.iter().map(|(_, len)| len).sum();
    for (number, len) in files {
        let too_large = size.is_some_and(|size| total > size);
        if *number >= needed || !(too_large || old(*number)) {
            return *number;
        }
        total -= len;
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_file_that_is_needed_is_never_removed() {
        let files = [(1, 10), (2, 10), (3, 10)];
        assert_eq!(first_kept(&files, 2, Some(0), |_| true), 2);
        assert_eq!(first_kept(&files, 3, None, |number| number < 2), 2);
        assert_eq!(first_kept(&files, 3, Some(25), |_| false), 2);
        assert_eq!(first_kept(&files, 3, None, |_| false), 1);
    }
}
