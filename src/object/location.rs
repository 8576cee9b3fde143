//! Where a store is: `file:///path` or `s3://bucket/prefix?endpoint=…`, with the
//! options that a configuration gives beside the URL. Must not connect to anything
//! while parsing.

use std::path::PathBuf;
use std::sync::Arc;

use super::{FileStore, ObjectError, ObjectErrorKind, ObjectStore};

/// What a configuration says about a store beside its URL. What the URL says itself
/// goes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The S3 endpoint's URL; `None`: AWS, or what the environment says.
    pub endpoint: Option<String>,
    /// The region; `None`: what the environment says, else one that fits.
    pub region: Option<String>,
    /// Whether the bucket goes into the path, not the host name; `None`: yes where an
    /// endpoint is set.
    pub force_path_style: Option<bool>,
}

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    File(PathBuf),
}

impl Location {
    /// Reads a URL: `file:///absolute/path`, `file://./relative/path` (to the working
    /// directory), `s3://bucket/prefix?endpoint=…&region=…&force-path-style=…`.
    ///
    /// # Errors
    /// Kind `Unsupported`, with what is wrong with the URL.
    pub fn parse(url: &str, _options: &Options) -> Result<Location, ObjectError> {
        let bad = |why: String| ObjectError {
            kind: ObjectErrorKind::Unsupported,
            attempt: format!("reading storage URL {url:?}"),
            why,
        };
        if let Some(path) = url.strip_prefix("file://") {
            return match decode(path) {
                Some(path) if path.starts_with(['/', '.']) => Ok(Location::File(PathBuf::from(path))),
                _ => Err(bad("write file:///path or file://./path".to_owned())),
            };
        }
        Err(bad("write file:///path or s3://bucket/prefix".to_owned()))
    }

    /// Opens the store. Only the URL can be at fault here: a store that cannot be
    /// reached says so when it is used.
    ///
    /// # Errors
    /// Kind `Local` if this process cannot have what a store needs (threads).
    pub fn open(&self) -> Result<Arc<dyn ObjectStore>, ObjectError> {
        match self {
            Location::File(path) => Ok(Arc::new(FileStore::new(path))),
        }
    }
}

/// Opens the store at `url`; see `Location`.
///
/// # Errors
/// As `Location::parse` and `Location::open`.
pub fn from_url(url: &str, options: &Options) -> Result<Arc<dyn ObjectStore>, ObjectError> {
    Location::parse(url, options)?.open()
}

/// A URL's path with `%20` and the like decoded (RFC 3986 §2.1); `None` if that is
/// no text.
fn decode(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = tail.get(2..)?;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_url_names_a_directory() {
        for (url, path) in [
            ("file:///var/lib/litefs", "/var/lib/litefs"),
            ("file:///with%20space/%zz", "/with space/%zz"),
            ("file://./run/archive", "./run/archive"),
        ] {
            assert_eq!(Location::parse(url, &Options::default()).ok(), Some(Location::File(path.into())));
        }
    }

    #[test]
    fn what_is_no_storage_url_is_refused_with_the_form_to_use() {
        for url in ["", "/var/lib", "file:/x", "file://host/x", "ftp://x/y"] {
            let error = Location::parse(url, &Options::default()).expect_err(url);
            assert_eq!(error.kind, ObjectErrorKind::Unsupported);
            assert!(error.why.contains("write file:///path"), "{error}");
        }
    }
}
