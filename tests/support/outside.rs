//! Real S3 servers outside of the tests, as scripts/test starts them. Must not let a
//! test pass by not running where such a server is promised.

#![allow(dead_code, reason = "each test program uses a part of it")]

use litefs::object::{KeyPair, Location, Options, S3Location};

/// A server, and its credentials.
#[derive(Clone, Debug)]
pub struct Outside {
    pub url: String,
    pub key: String,
    pub secret: String,
}

impl Outside {
    /// MinIO.
    pub fn minio() -> Option<Outside> {
        Outside::named("LITEFS_TEST_S3", "scripts/minio.sh")
    }

    /// ministack, of other origin.
    pub fn ministack() -> Option<Outside> {
        Outside::named("LITEFS_TEST_S3_SECOND", "scripts/ministack.sh")
    }

    /// The server that `{name}_URL`, `_KEY` and `_SECRET` name, and which `script` starts.
    fn named(name: &str, script: &str) -> Option<Outside> {
        let variable =
            |part: &str| std::env::var(format!("{name}_{part}")).ok().filter(|text| !text.is_empty());
        let found =
            || Some(Outside { url: variable("URL")?, key: variable("KEY")?, secret: variable("SECRET")? });
        let server = found();
        let how =
            format!("{name}_URL, _KEY and _SECRET are not set; eval \"$({script} start)\" starts a server");
        let required = std::env::var_os("LITEFS_TEST_S3_REQUIRED").is_some();
        assert!(server.is_some() || !required, "{how}");
        if server.is_none() {
            eprintln!("NOT RUN: {how}");
        }
        server
    }

    /// The storage URL of the part of the bucket below `prefix`.
    pub fn url_of(&self, prefix: &str) -> String {
        self.url.replacen('?', &format!("/{prefix}?"), 1)
    }

    /// The same, for a store of this process.
    pub fn place(&self, prefix: &str) -> S3Location {
        match Location::parse(&self.url_of(prefix), &self.options()) {
            Ok(Location::S3(place)) => place,
            other => panic!("{} is no URL of S3: {other:?}", self.url),
        }
    }

    /// The options to open a store with: the credentials.
    pub fn options(&self) -> Options {
        let pair = KeyPair { id: self.key.clone(), secret: self.secret.clone() };
        Options { credentials: Some(pair), ..Options::default() }
    }

    /// The environment of a process that opens a store there.
    pub fn environment(&self) -> [(String, String); 2] {
        [("AWS_ACCESS_KEY_ID", &self.key), ("AWS_SECRET_ACCESS_KEY", &self.secret)]
            .map(|(name, value)| (name.to_owned(), value.clone()))
    }
}
