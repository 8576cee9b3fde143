//! What is wrong with a configuration, where, and what to do. Must not quote
//! values of keys that hold secrets.

use std::path::PathBuf;

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named cannot be read.
    #[error("reading the configuration {} failed: {why}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// No file in any of the places.
    #[error(
        "no configuration found: looked for {}; write one (the repository's litefs.toml is a start) or \
         name it with --config",
        .looked.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NotFound {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// Something in the file.
    #[error("{}:{line}: {text}", .file.display())]
    At {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong and what to do.
        text: String,
    },
}

/// A fault at a place of the text, before it is known in which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Byte offset into the text.
    pub at: usize,
    pub text: String,
}

impl Fault {
    pub fn new(at: usize, text: impl Into<String>) -> Fault {
        Fault { at, text: text.into() }
    }
}

/// The line of a byte offset, from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count() + 1
}
