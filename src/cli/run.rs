//! `litefs run`: a command on the right node. It replaces this process, so that
//! signals and exit code are its own. Must not run it anywhere else.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::words::DbName;

use super::args::Run;
use super::error::CliError;
use super::remote;

pub fn run(args: &Run) -> Result<(), CliError> {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(CliError::usage("litefs run needs a command: litefs run -- CMD ARGS…"));
    };
    let mut lock = None;
    if args.promote || args.if_primary || args.if_candidate || args.halt.is_some() {
        let client = remote::client(&args.remote)?;
        let info = client.info()?;
        let wrong = match () {
            () if args.if_candidate && !info.candidate => Some("may not become primary"),
            () if args.if_primary && !info.is_primary => Some("is not the primary"),
            () => None,
        };
        if let Some(wrong) = wrong {
            eprintln!("litefs: {program} is not run: this node ({}) {wrong}", info.hostname);
            return Ok(());
        }
        if args.promote && !info.is_primary {
            client.promote()?;
        }
        if let Some(db) = &args.halt {
            lock = Some(halt(&info.path, db)?);
        }
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    drop(lock);
    Err(CliError::io(format!("running {program}"))(error))
}

/// Gets the halt lock: it is held as long as the command, or a process that it started, has
/// this file open.
fn halt(mount: &str, db: &str) -> Result<OwnedFd, CliError> {
    let db = DbName::new(db).map_err(|error| CliError::usage(error.to_string()))?;
    let path = Path::new(mount).join(format!("{db}-lock"));
    // Not closed by execve(2).
    let opened = rustix::fs::open(&path, OFlags::RDWR, Mode::empty());
    opened.map_err(|error| {
        let attempt =
            format!("getting the halt lock of database {db} ({}); the node's log says why", path.display());
        CliError::io(attempt)(error.into())
    })
}
