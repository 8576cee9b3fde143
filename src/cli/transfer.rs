//! `litefs import` and `litefs export`: whole databases through a node's API. Must
//! not touch the mount.

use std::fs::File;
use std::io::{BufWriter, Write};

use crate::words::DbName;

use super::args::{Export, Import};
use super::destination::Destination;
use super::error::CliError;
use super::{progress, remote};

pub fn import(args: &Import) -> Result<(), CliError> {
    let db = db_name(&args.name)?;
    let attempt = || format!("reading {}", args.file.display());
    let file = File::open(&args.file).map_err(CliError::io(attempt()))?;
    let meta = file.metadata().map_err(CliError::io(attempt()))?;
    if !meta.is_file() {
        return Err(CliError::usage(format!("{} is not a file", args.file.display())));
    }
    refuse_unfinished(args)?;
    let client = remote::client(&args.remote)?;
    let bar = progress::bar(&format!("importing {db}"), meta.len());
    let shown = bar.clone();
    let pos = client.import(&db, file, meta.len(), move |done, _| shown.set_position(done))?;
    bar.finish_and_clear();
    println!("{db} is at {pos}");
    Ok(())
}

/// A journal or WAL beside the file holds transactions that the file itself lacks.
fn refuse_unfinished(args: &Import) -> Result<(), CliError> {
    for suffix in ["-wal", "-journal"] {
        let mut beside = args.file.as_os_str().to_owned();
        beside.push(suffix);
        if std::fs::metadata(&beside).is_ok_and(|meta| meta.len() > 0) {
            return Err(CliError::Failed(anyhow::anyhow!(
                "{} lies beside the database and may hold transactions that would be lost; close the programs \
                 that use it, then run `sqlite3 {} 'PRAGMA wal_checkpoint(TRUNCATE)'` and try again",
                beside.display(),
                args.file.display()
            )));
        }
    }
    Ok(())
}

pub fn export(args: &Export) -> Result<(), CliError> {
    let db = db_name(&args.name)?;
    let destination = Destination::new(&args.file, args.force)?;
    let client = remote::client(&args.remote)?;
    let attempt = format!("writing {}", destination.temp().display());
    let file = File::create_new(destination.temp()).map_err(CliError::io(&attempt))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let bar = progress::bar(&format!("exporting {db}"), 0);
    let pos = client.export(&db, &mut out, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    out.flush().map_err(CliError::io(&attempt))?;
    destination.finish()?;
    bar.finish_and_clear();
    println!("{} is {db} at {pos}", args.file.display());
    Ok(())
}

/// The database of an argument.
pub fn db_name(name: &str) -> Result<DbName, CliError> {
    DbName::new(name).map_err(CliError::usage)
}
