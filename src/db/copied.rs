//! Databases that are copied in: written without a journal, by whoever made the file.
//! Captured as one transaction when the descriptor is closed, and again if that was not
//! the last one and more is written.

use super::database::State;
use super::{Database, DbError, FileKind};
use crate::sqlite::{ReadAt, header};
use crate::words::PageSize;

impl Database {
    /// A handle is gone. When the last one that wrote a copied-in database closes, the
    /// copy is captured, complete or not.
    pub fn close(&self, kind: FileKind, last: bool, wrote: bool) {
        if kind != FileKind::Database || !last || !wrote {
            return;
        }
        let mut state = self.lock();
        if let Err(error) = self.capture_copy(&mut state, true) {
            tracing::error!(db = %self.name, %error, "capturing a copied-in database failed: it is not archived; copy it again");
        }
        state.copying = false;
    }

    /// Captures what was copied in; half a database only at the `end`.
    pub(super) fn capture_copy(&self, state: &mut State, end: bool) -> Result<(), DbError> {
        let copied_in = state.exists && (state.whole || state.copying);
        if !copied_in || state.nonce.is_some() || self.has_sidecar() {
            return Ok(());
        }
        if end || self.is_complete(state)? { self.commit_rollback(state) } else { Ok(()) }
    }

    /// Whether the file has every page that its header states; one without a readable
    /// header states nothing.
    fn is_complete(&self, state: &mut State) -> Result<bool, DbError> {
        let file = self.database_file(state)?;
        let read = || DbError::io("read", self.path(FileKind::Database));
        let mut bytes = [0; header::HEADER_LEN];
        let count = file.read_upto(&mut bytes, 0).map_err(read())?;
        let Some(header) = header::Header::parse(&bytes[..count]) else { return Ok(true) };
        let len = file.metadata().map_err(read())?.len();
        let stated = header.pages().map(|pages| u64::from(pages) * u64::from(header.page_size.get()));
        Ok(stated.is_none_or(|stated| stated <= len))
    }
}

/// A page size for `len` bytes of which nothing is known but that they may be an
/// encrypted database: any that fits will do until a journal or WAL states it.
pub(super) fn fitting_size(len: u64) -> Option<PageSize> {
    [4096, 2048, 1024, 512]
        .into_iter()
        .filter(|size| len > 0 && len.is_multiple_of(u64::from(*size)))
        .find_map(|size| PageSize::new(size).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_multiple_of_the_smallest_page_is_no_database() {
        let sizes = [0, 1, 511, 512, 1536, 2048, 12288, 4097];
        let sizes = sizes.map(|len| fitting_size(len).map(PageSize::get));
        assert_eq!(sizes, [None, None, None, Some(512), Some(512), Some(2048), Some(4096), None]);
    }
}
