//! `litefs restore`: databases of the archive into files, at any point in time.
//! Needs no node. Must not touch a mount or the archive.

use crate::archive::{Archive, ArchiveError, FileSink, Head, Plan, Progress, Target};
use crate::words::{Clock, DbName, SystemClock, Txid};

use super::args::Restore;
use super::destination::Destination;
use super::error::CliError;
use super::transfer::db_name;
use super::{place, progress, table, time};

/// How often a restore begins again when upkeep replaces objects that it reads.
const ATTEMPTS: usize = 3;

pub fn restore(args: &Restore) -> Result<(), CliError> {
    let target = target(args)?;
    let name = args.name.as_deref().map(db_name).transpose()?;
    let archive = place::archive(&args.place)?;
    match name {
        Some(db) => one(&archive, &mut archive.head()?, &db, target, &args.output, args.force),
        None => all(&archive, target, args),
    }
}

fn target(args: &Restore) -> Result<Target, CliError> {
    if let Some(text) = &args.timestamp {
        return Ok(Target::Timestamp(time::parse(text, SystemClock.now())?));
    }
    match &args.txid {
        Some(text) => Ok(Target::Txid(text.parse::<Txid>().map_err(CliError::usage)?)),
        None => Ok(Target::Latest),
    }
}

/// Every database that there was at that point; those that were not are named.
fn all(archive: &Archive, target: Target, args: &Restore) -> Result<(), CliError> {
    let mut head = archive.head()?;
    let databases: Vec<DbName> = head.databases().keys().cloned().collect();
    let mut restored = 0;
    for db in &databases {
        match archive.plan(&head, db, target) {
            Err(ArchiveError::NoSuchPoint { why, .. }) => eprintln!("litefs: {db} is left out: {why}"),
            Err(error) => return Err(error.into()),
            Ok(_) => {
                one(archive, &mut head, db, target, &args.output.join(db.as_str()), args.force)?;
                restored += 1;
            }
        }
    }
    if restored == 0 {
        return Err(CliError::Failed(anyhow::anyhow!("the archive has no database at {target}")));
    }
    Ok(())
}

fn one(
    archive: &Archive,
    head: &mut Head,
    db: &DbName,
    target: Target,
    output: &std::path::Path,
    force: bool,
) -> Result<(), CliError> {
    for attempt in 1.. {
        let destination = Destination::new(output, force)?;
        let plan = archive.plan(head, db, target)?;
        match write(archive, &plan, &destination) {
            Err(CliError::Failed(error)) if attempt < ATTEMPTS && is_outdated(&error) => {
                archive.refresh(head)?;
            }
            Err(error) => return Err(error),
            Ok(()) => {
                destination.finish()?;
                let size = u64::from(plan.commit) * u64::from(plan.page_size.get());
                let (pos, when) = (plan.pos, plan.timestamp);
                println!("{}: {db} at {pos}, {when}, {}", output.display(), table::bytes(size));
                return Ok(());
            }
        }
    }
    Ok(())
}

fn is_outdated(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ArchiveError>().is_some_and(ArchiveError::is_outdated)
}

fn write(archive: &Archive, plan: &Plan, destination: &Destination) -> Result<(), CliError> {
    let attempt = format!("writing {}", destination.temp().display());
    let sink =
        FileSink::create(destination.temp(), plan.page_size, plan.commit).map_err(CliError::io(&attempt))?;
    let page = u64::from(plan.page_size.get());
    let bar = progress::bar(&format!("restoring {}", plan.db), u64::from(plan.commit) * page);
    archive.restore(plan, &sink, &|progress: Progress| {
        bar.set_position(progress.pages * page);
        true
    })?;
    sink.finish().map_err(CliError::io(&attempt))?;
    bar.finish_and_clear();
    Ok(())
}
