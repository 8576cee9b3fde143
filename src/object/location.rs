//! Where a store is: `file:///path` or `s3://bucket/prefix?endpoint=…`, with the
//! options that a configuration gives beside the URL. Must not connect to anything
//! while parsing.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{FileStore, ObjectError, ObjectErrorKind, ObjectStore, OneWriter, S3Store};

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
    /// The credentials; `None`: from the AWS chain (environment, profile, role).
    pub credentials: Option<KeyPair>,
}

/// An access key and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The access key's id.
    pub id: String,
    /// The secret, shown nowhere.
    pub secret: String,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    File(PathBuf),
    /// A bucket, or a part of one.
    S3(S3Location),
}

/// A bucket, or the part of it whose keys begin with a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Location {
    /// The bucket's name.
    pub bucket: String,
    /// What every key begins with, without slashes around it; may be empty.
    pub prefix: String,
    /// The endpoint's URL, see `Options`.
    pub endpoint: Option<String>,
    /// The region, see `Options`.
    pub region: Option<String>,
    /// Whether the bucket goes into the path, see `Options`.
    pub force_path_style: Option<bool>,
    /// The credentials, see `Options`.
    pub credentials: Option<KeyPair>,
}

impl Location {
    /// Reads a URL: `file:///absolute/path`, `file://./relative/path` (to the working
    /// directory), `s3://bucket/prefix?endpoint=…&region=…&force-path-style=…`.
    ///
    /// # Errors
    /// Kind `Unsupported`, with what is wrong with the URL.
    pub fn parse(url: &str, options: &Options) -> Result<Location, ObjectError> {
        let parsed = if let Some(path) = url.strip_prefix("file://") {
            parse_file(path)
        } else if url.starts_with("s3://") {
            S3Location::parse(url, options).map(Location::S3)
        } else {
            Err("write file:///path or s3://bucket/prefix".to_owned())
        };
        parsed.map_err(|why| ObjectError {
            kind: ObjectErrorKind::Unsupported,
            attempt: format!("reading storage URL {url:?}"),
            why,
        })
    }

    /// Opens the store. Only the URL can be at fault here: a store that cannot be
    /// reached says so when it is used.
    ///
    /// # Errors
    /// Kind `Local` if this process cannot have what a store needs (threads).
    pub fn open(&self) -> Result<Arc<dyn ObjectStore>, ObjectError> {
        Ok(match self {
            Location::File(path) => Arc::new(FileStore::new(path)),
            Location::S3(place) => Arc::new(S3Store::new(place.clone())?),
        })
    }

    /// Opens the store for a node that is its only writer by configuration; see `OneWriter`.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_for_one_writer(&self) -> Result<Arc<dyn ObjectStore>, ObjectError> {
        let store = self.open()?;
        Ok(match self {
            // A directory keeps conditions.
            Location::File(_) => store,
            Location::S3(_) => Arc::new(OneWriter::new(store)),
        })
    }

    /// Opens the store for a lease with this time to live; see `S3Store::for_lease`.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_for_lease(&self, ttl: Duration) -> Result<Arc<dyn ObjectStore>, ObjectError> {
        Ok(match self {
            Location::File(path) => Arc::new(FileStore::new(path)),
            Location::S3(place) => Arc::new(S3Store::for_lease(place.clone(), ttl)?),
        })
    }
}

impl S3Location {
    fn parse(text: &str, options: &Options) -> Result<S3Location, String> {
        let url = url::Url::parse(text).map_err(|error| error.to_string())?;
        let bucket = url.host_str().unwrap_or_default().to_owned();
        if bucket.is_empty() || !url.username().is_empty() || url.port().is_some() {
            return Err("write s3://bucket/prefix; credentials come from the environment".to_owned());
        }
        let prefix = decode(url.path().trim_matches('/')).ok_or("its prefix is not UTF-8")?;
        if let Some(why) = super::key::fault(&prefix).filter(|_| !prefix.is_empty()) {
            return Err(format!("the prefix cannot begin a key: {why}"));
        }
        let mut place = S3Location {
            bucket,
            prefix,
            endpoint: options.endpoint.clone(),
            region: options.region.clone(),
            force_path_style: options.force_path_style,
            credentials: options.credentials.clone(),
        };
        for (name, value) in url.query_pairs() {
            match &*name {
                "endpoint" => place.endpoint = Some(value.into_owned()),
                "region" => place.region = Some(value.into_owned()),
                "force-path-style" => {
                    let flag = value.parse();
                    place.force_path_style = Some(flag.map_err(|_| "force-path-style is true or false")?);
                }
                other => {
                    return Err(format!(
                        "{other:?} is no parameter; there are endpoint, region and force-path-style"
                    ));
                }
            }
        }
        if let Some(endpoint) = &place.endpoint {
            check_endpoint(endpoint)?;
        }
        Ok(place)
    }

    /// The endpoint given here, else by the environment (AWS_ENDPOINT_URL_S3,
    /// AWS_ENDPOINT_URL).
    pub fn endpoint(&self) -> Option<String> {
        let from = |name| std::env::var(name).ok().filter(|url: &String| !url.is_empty());
        self.endpoint.clone().or_else(|| from("AWS_ENDPOINT_URL_S3")).or_else(|| from("AWS_ENDPOINT_URL"))
    }

    /// The key in the bucket of the object that is `key` here.
    pub(super) fn full_key(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) }
    }

    /// The key here of the object that is `key` in the bucket; `None` if it is not
    /// below the prefix.
    pub(super) fn own_key<'a>(&self, key: &'a str) -> Option<&'a str> {
        if self.prefix.is_empty() { Some(key) } else { key.strip_prefix(&self.prefix)?.strip_prefix('/') }
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        match &self.endpoint {
            Some(endpoint) => write!(f, " at {endpoint}"),
            None => Ok(()),
        }
    }
}

fn parse_file(path: &str) -> Result<Location, String> {
    match decode(path) {
        Some(path) if path.starts_with(['/', '.']) => Ok(Location::File(PathBuf::from(path))),
        _ => Err("write file:///path or file://./path".to_owned()),
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let bad = |why: &str| format!("endpoint {endpoint:?}: {why}");
    let url = url::Url::parse(endpoint).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(bad("write https://host or http://host:port"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the endpoint must not hold credentials; they come from the environment".to_owned());
    }
    Ok(())
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

    fn s3(url: &str, options: &Options) -> Result<S3Location, String> {
        match Location::parse(url, options) {
            Ok(Location::S3(place)) => Ok(place),
            Ok(other) => panic!("{url}: {other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn an_s3_url_goes_before_the_options() {
        let options = Options { region: Some("eu-west-1".to_owned()), ..Options::default() };
        let place = s3("s3://bucket/a/b/?endpoint=http://127.0.0.1:9000&force-path-style=false", &options)
            .expect("well-formed");
        assert_eq!((place.bucket.as_str(), place.prefix.as_str()), ("bucket", "a/b"));
        assert_eq!(place.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!((place.region.as_deref(), place.force_path_style), (Some("eu-west-1"), Some(false)));
        assert_eq!(place.to_string(), "s3://bucket/a/b at http://127.0.0.1:9000");
        assert_eq!(place.full_key("x/y"), "a/b/x/y");
        assert_eq!((place.own_key("a/b/x"), place.own_key("a/bc/x")), (Some("x"), None));
        let place = s3("s3://bucket?region=auto", &options).expect("well-formed");
        assert_eq!((place.full_key("x").as_str(), place.region.as_deref()), ("x", Some("auto")));
    }

    #[test]
    fn a_bad_s3_url_is_refused_with_the_reason() {
        for (url, why) in [
            ("s3://", "s3://bucket/prefix"),
            ("s3://key:secret@bucket/x", "credentials come from the environment"),
            ("s3://bucket/a//b", "two in a row"),
            ("s3://bucket?regoin=x", "is no parameter"),
            ("s3://bucket?force-path-style=maybe", "true or false"),
            ("s3://bucket?endpoint=127.0.0.1:9000", "endpoint"),
            ("s3://bucket?endpoint=http://a:b@host", "must not hold credentials"),
        ] {
            let error = s3(url, &Options::default()).expect_err(url);
            assert!(error.contains(why), "{error}");
        }
    }
}
