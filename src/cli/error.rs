//! What a command can end with, and the exit code of each. Must not print.

use std::fmt::Display;

use crate::config::ConfigError;

/// A command that did not do what it was asked.
#[derive(Debug)]
pub enum CliError {
    /// Wrong usage or configuration: exit code 2.
    Usage(String),
    /// It failed: exit code 1.
    Failed(anyhow::Error),
    /// Going on would not be safe: exit code 99.
    Unsafe(anyhow::Error),
    /// What is wrong was said already; the exit code.
    Told(u8),
}

impl CliError {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            CliError::Usage(_) => 2,
            CliError::Failed(_) => 1,
            CliError::Unsafe(_) => 99,
            CliError::Told(code) => *code,
        }
    }

    /// The text for standard error. Every error's own text says why already, so its
    /// sources are not printed after it.
    pub fn text(&self) -> Option<String> {
        match self {
            CliError::Usage(text) => Some(text.clone()),
            CliError::Failed(error) | CliError::Unsafe(error) => Some(error.to_string()),
            CliError::Told(_) => None,
        }
    }

    /// Wrong usage.
    pub fn usage(text: impl Display) -> CliError {
        CliError::Usage(text.to_string())
    }

    /// A failed operation on a file: what was attempted, and why it failed.
    pub fn io(attempt: impl Display) -> impl FnOnce(std::io::Error) -> CliError {
        let attempt = attempt.to_string();
        move |error| CliError::Failed(anyhow::anyhow!("{attempt} failed: {error}"))
    }
}

impl<E: Into<anyhow::Error>> From<E> for CliError {
    fn from(error: E) -> CliError {
        let error = error.into();
        match error.downcast::<ConfigError>() {
            Ok(error) => CliError::Usage(error.to_string()),
            Err(error) => CliError::Failed(error),
        }
    }
}
