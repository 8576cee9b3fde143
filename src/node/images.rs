//! Snapshots for the archive out of local databases, so that nothing is downloaded
//! for them. Must not decide when one is due.

use std::io;
use std::os::unix::fs::FileExt;

use crate::archive::{SnapshotSource, Snapshots};
use crate::db::Image;
use crate::store::Store;
use crate::words::{DbName, PageSize, Pgno, Pos};

/// The databases of a node.
pub(super) struct Images<'a>(pub &'a Store);

impl Snapshots for Images<'_> {
    fn open(&self, db: &DbName) -> Option<Box<dyn SnapshotSource + '_>> {
        // Only a position that the archive has is of use.
        if self.0.commits().oldest_of(db).is_some() {
            return None;
        }
        match self.0.database(db)?.image(self.0.dir()) {
            Ok(image) => image.map(|image| Box::new(Local(image)) as _),
            Err(error) => {
                tracing::warn!(%db, %error, "no local image for a snapshot: it is made from the archive");
                None
            }
        }
    }
}

struct Local(Image);

impl SnapshotSource for Local {
    fn pos(&self) -> Pos {
        self.0.pos
    }

    fn page_size(&self) -> PageSize {
        self.0.page_size
    }

    fn commit(&self) -> u32 {
        self.0.pages
    }

    fn page(&mut self, pgno: Pgno, page: &mut [u8]) -> io::Result<()> {
        self.0.file.read_exact_at(page, self.0.page_size.offset_of(pgno))
    }
}
