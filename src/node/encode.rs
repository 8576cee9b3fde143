//! Change sets of the local log, and whole databases, as LTX for the archive. Must
//! not put anything.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::archive::{ArchiveError, Body, Change, ChangeSet};
use crate::db::{Image, StoredChange};
use crate::ltx::{Codec, Encoder, Form, Header, LtxError};
use crate::words::{Checksum, DbName, NodeId, Pgno, Pos, Timestamp, Txid};

/// Page contents beyond this many bytes become a file.
const IN_MEMORY: u64 = 32 << 20;

/// How change sets are written.
pub(super) struct Style<'a> {
    pub codec: Codec,
    pub node: NodeId,
    /// Where large ones are made.
    pub spool: &'a Path,
}

/// Why a change set could not be encoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error(transparent)]
    Log(#[from] crate::db::LogError),
    #[error("encoding a change set of database {db}: {source}")]
    Ltx { db: DbName, source: LtxError },
    #[error("writing {path}: {source}", path = path.display())]
    Spool { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Writes a change set of the log, a page at a time.
pub(super) fn write_stored<W: Write>(
    stored: &StoredChange,
    codec: Codec,
    node: NodeId,
    writer: W,
) -> Result<W, EncodeError> {
    let (header, post) = (header_of(stored, codec, node), stored.meta.post.checksum);
    encode(&stored.meta.db, header, post, writer, |put| each_page(stored, put))
}

fn each_page(stored: &StoredChange, put: Put<'_>) -> Result<(), EncodeError> {
    let mut page = Vec::new();
    for (index, (pgno, _)) in stored.pages.iter().enumerate() {
        stored.page(index, &mut page)?;
        put(*pgno, &page)?;
    }
    Ok(())
}

fn header_of(stored: &StoredChange, codec: Codec, node: NodeId) -> Header {
    let meta = &stored.meta;
    Header {
        page_size: meta.page_size,
        commit: meta.commit,
        min: meta.pre.txid.next(),
        max: meta.post.txid,
        timestamp: meta.timestamp,
        pre: meta.pre.checksum,
        wal: None,
        node: node.get(),
        form: Form::Tracked,
        codec,
    }
}

/// A change set of the log.
pub(super) fn change_set(stored: &StoredChange, style: &Style<'_>) -> Result<ChangeSet, EncodeError> {
    let meta = &stored.meta;
    let header = header_of(stored, style.codec, style.node);
    let change = Change {
        pre: meta.pre,
        post: meta.post,
        page_size: meta.page_size,
        commit: meta.commit,
        pages: stored.pages.len() as u32,
        timestamp: meta.timestamp,
    };
    write(&meta.db, header, change, stored.data_len(), style, |put| each_page(stored, put))
}

/// A whole database, for an archive that has nothing of it.
pub(super) fn whole(
    db: &DbName,
    image: &Image,
    timestamp: Timestamp,
    style: &Style<'_>,
) -> Result<ChangeSet, EncodeError> {
    let header = Header {
        page_size: image.page_size,
        commit: image.pages,
        min: Txid::new(1),
        max: image.pos.txid,
        timestamp,
        pre: Checksum::EMPTY,
        wal: None,
        node: style.node.get(),
        form: Form::Tracked,
        codec: style.codec,
    };
    let lock_page = image.page_size.lock_page();
    let change = Change {
        pre: Pos::ZERO,
        post: image.pos,
        page_size: image.page_size,
        commit: image.pages,
        pages: image.pages - u32::from(image.pages >= lock_page.get()),
        timestamp,
    };
    let len = u64::from(image.pages) * u64::from(image.page_size.get());
    let mut page = vec![0; image.page_size.len()];
    write(db, header, change, len, style, |put| {
        for pgno in Pgno::up_to(image.pages).filter(|pgno| *pgno != lock_page) {
            image
                .file
                .read_exact_at(&mut page, image.page_size.offset_of(pgno))
                .map_err(|source| EncodeError::Spool { path: "an image".into(), source })?;
            put(pgno, &page)?;
        }
        Ok(())
    })
}

type Put<'a> = &'a mut dyn FnMut(Pgno, &[u8]) -> Result<(), EncodeError>;

fn write(
    db: &DbName,
    header: Header,
    change: Change,
    len: u64,
    style: &Style<'_>,
    pages: impl FnOnce(Put<'_>) -> Result<(), EncodeError>,
) -> Result<ChangeSet, EncodeError> {
    let post = change.post.checksum;
    let body = if len <= IN_MEMORY {
        Body::Bytes(Bytes::from(encode(db, header, post, Vec::new(), pages)?))
    } else {
        let path = style.spool.join(format!("{}-{}.ltx", db.as_str().replace('/', "%2F"), change.post.txid));
        let failed = |source| EncodeError::Spool { path: path.clone(), source };
        let file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(failed)?);
        let mut file = encode(db, header, post, file, pages)?;
        file.flush().map_err(failed)?;
        Body::File(path)
    };
    Ok(ChangeSet { db: db.clone(), change, body })
}

fn encode<W: Write>(
    db: &DbName,
    header: Header,
    post: Checksum,
    writer: W,
    pages: impl FnOnce(Put<'_>) -> Result<(), EncodeError>,
) -> Result<W, EncodeError> {
    let failed = |source| EncodeError::Ltx { db: db.clone(), source };
    let mut encoder = Encoder::new(writer, header).map_err(failed)?;
    pages(&mut |pgno, page| encoder.page(pgno, page).map_err(failed))?;
    Ok(encoder.finish(post).map_err(failed)?.writer)
}
