//! The change sets in what a person names: an LTX file, a segment of the log, a
//! pack; on this machine or in a store. Must not interpret them.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::archive::{Entry, Place, pack, segment};
use crate::object::{self, Location};
use crate::words::DbName;

use super::error::CliError;

/// What can be read at any place.
pub trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

/// One change set.
pub struct Found {
    /// For messages: the file, and within a segment or pack which part of it.
    pub label: String,
    bytes: Where,
}

enum Where {
    File(PathBuf),
    Memory(Bytes),
}

impl Found {
    /// Opens it; returns its length too.
    pub fn open(&self) -> Result<(Box<dyn ReadSeek>, u64), CliError> {
        match &self.bytes {
            Where::Memory(bytes) => Ok((Box::new(Cursor::new(bytes.clone())), bytes.len() as u64)),
            Where::File(path) => {
                let attempt = || format!("reading {}", path.display());
                let file = File::open(path).map_err(CliError::io(attempt()))?;
                let len = file.metadata().map_err(CliError::io(attempt()))?.len();
                Ok((Box::new(BufReader::with_capacity(1 << 20, file)), len))
            }
        }
    }
}

/// The change sets of everything that is named; of several databases, only `db`'s
/// if given.
pub fn find(names: &[String], db: Option<&DbName>) -> Result<Vec<Found>, CliError> {
    let mut found = Vec::new();
    for name in names {
        match name.split_once("://") {
            None => local(Path::new(name), db, &mut found)?,
            Some(("file", _)) => match Location::parse(name, &object::Options::default()) {
                Ok(Location::File(path)) => local(&path, db, &mut found)?,
                Ok(_) => return Err(CliError::usage(format!("{name} is not the URL of a file"))),
                Err(error) => return Err(CliError::usage(error)),
            },
            Some(_) => unpack(name, remote(name)?, db, &mut found)?,
        }
    }
    Ok(found)
}

fn local(path: &Path, db: Option<&DbName>, found: &mut Vec<Found>) -> Result<(), CliError> {
    let label = path.display().to_string();
    let attempt = || format!("reading {label}");
    let mut file = File::open(path).map_err(CliError::io(attempt()))?;
    let mut magic = Vec::new();
    (&mut file).take(8).read_to_end(&mut magic).map_err(CliError::io(attempt()))?;
    if !is_container(&magic) {
        found.push(Found { label, bytes: Where::File(path.to_owned()) });
        return Ok(());
    }
    let bytes = std::fs::read(path).map_err(CliError::io(attempt()))?;
    unpack(&label, bytes.into(), db, found)
}

/// The object at `s3://bucket/key?…`.
fn remote(name: &str) -> Result<Bytes, CliError> {
    let mut url = url::Url::parse(name).map_err(|error| CliError::usage(format!("{name}: {error}")))?;
    let key = url.path().trim_start_matches('/').to_owned();
    url.set_path("");
    let location = Location::parse(url.as_str(), &object::Options::default()).map_err(CliError::usage)?;
    let object = location.open()?.get(&key)?;
    object
        .map(|object| object.body)
        .ok_or_else(|| CliError::Failed(anyhow::anyhow!("there is no object {name}")))
}

fn is_container(begin: &[u8]) -> bool {
    begin.starts_with(b"LITEFSLG") || begin.starts_with(b"LITEFSPK")
}

fn unpack(label: &str, bytes: Bytes, db: Option<&DbName>, found: &mut Vec<Found>) -> Result<(), CliError> {
    let damaged = |why: String| CliError::Failed(anyhow::anyhow!("{label} is damaged: {why}"));
    let entries: Vec<Entry> = if bytes.starts_with(b"LITEFSLG") {
        segment::decode(&bytes).map_err(|fault| damaged(fault.to_string()))?.entries
    } else if bytes.starts_with(b"LITEFSPK") {
        pack::decode_head(&bytes).map_err(|fault| damaged(fault.to_string()))?
    } else {
        found.push(Found { label: label.to_owned(), bytes: Where::Memory(bytes) });
        return Ok(());
    };
    for entry in entries.iter().filter(|entry| db.is_none_or(|db| entry.db == *db)) {
        let label = format!("{label}[{} {}-{}]", entry.db, entry.change.min(), entry.change.max());
        match &entry.place {
            Place::Here { offset, len } => {
                let begin = usize::try_from(*offset).ok();
                let end = begin.and_then(|begin| begin.checked_add(usize::try_from(*len).ok()?));
                let range = begin.zip(end).filter(|(_, end)| *end <= bytes.len());
                let (begin, end) = range.ok_or_else(|| damaged("it ends before its end".to_owned()))?;
                found.push(Found { label, bytes: Where::Memory(bytes.slice(begin..end)) });
            }
            Place::Object { key, .. } => {
                eprintln!("litefs: {label} is in an object of its own: {key}");
            }
        }
    }
    Ok(())
}
