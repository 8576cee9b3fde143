//! `litefs parked`: branches that lost, in a node's data directory and in the archive.
//! Must not change them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::archive::{ArchiveError, LostBranch};
use crate::config::{self, Config};
use crate::store::{self, ParkedBranch};

use super::args::{Parked, Place};
use super::destination::Destination;
use super::error::CliError;
use super::{place, table};

/// A branch, and where it is.
struct Found {
    branch: LostBranch,
    /// Its file in the data directory.
    file: Option<PathBuf>,
    archived: bool,
}

pub fn parked(command: &Parked) -> Result<(), CliError> {
    match command {
        Parked::List { json, place } => list(place, *json),
        Parked::Export { id, output, force, place } => export(place, id, output, *force),
    }
}

/// What the data directory has; nothing where only an archive is named.
fn local(place: &Place) -> Result<Vec<ParkedBranch>, CliError> {
    if place.storage.is_some() {
        return Ok(Vec::new());
    }
    let config = Config::load(&config::find(place.config.as_deref())?, true)?;
    Ok(store::parked(&config.data.dir)?)
}

/// What the archive has; nothing where there is none yet.
fn archived(place: &Place) -> Result<Vec<LostBranch>, CliError> {
    match place::archive(place) {
        Ok(archive) => Ok(archive.lost_branches()?),
        Err(CliError::Failed(error))
            if matches!(error.downcast_ref(), Some(ArchiveError::NoArchive { .. })) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn described(parked: &ParkedBranch) -> Found {
    let store::ParkedBranch { id, parked: what, file, size, archived } = parked.clone();
    let branch = LostBranch {
        id,
        db: what.db,
        pos: what.pos,
        from: what.from,
        at: what.at,
        node: what.node,
        size,
        stored: 0,
    };
    Found { branch, file: size.map(|_| file), archived }
}

fn list(place: &Place, json: bool) -> Result<(), CliError> {
    let mut found: BTreeMap<_, Found> = BTreeMap::new();
    for branch in local(place)? {
        found.insert((branch.parked.at, branch.id.clone()), described(&branch));
    }
    // What is on this disk is shown, whatever the archive says.
    let archived = archived(place);
    for branch in archived.as_ref().map(Vec::as_slice).unwrap_or_default() {
        let kept = found.entry((branch.at, branch.id.clone()));
        let kept = kept.or_insert_with(|| Found { branch: branch.clone(), file: None, archived: true });
        kept.archived = true;
    }
    let found: Vec<Found> = found.into_values().collect();
    if json {
        let branches: Vec<_> = found.iter().map(|found| &found.branch).collect();
        let text = serde_json::to_string_pretty(&branches).map_err(|error| CliError::Failed(error.into()))?;
        println!("{text}");
    } else if !found.is_empty() {
        let rows: Vec<_> = found.iter().map(row).collect();
        let head =
            ["id", "database", "left the chain at", "position", "transactions", "parked", "size", "in"];
        print!("{}", table::render(&head, &rows));
    } else if archived.is_ok() {
        println!("no branch is parked here");
    }
    archived.map(drop)
}

fn row(found: &Found) -> Vec<String> {
    let Found { branch, file, archived } = found;
    let unknown = || "-".to_owned();
    let place = match (file, archived) {
        (Some(_), true) => "data directory, archive",
        (Some(_), false) => "data directory",
        (None, true) => "archive",
        (None, false) => "data directory (dropped)",
    };
    vec![
        branch.id.clone(),
        branch.db.to_string(),
        branch.from.map_or_else(unknown, |pos| pos.to_string()),
        branch.pos.to_string(),
        branch.transactions().map_or_else(unknown, |count| count.to_string()),
        branch.at.to_string(),
        branch.size.map_or_else(unknown, table::bytes),
        place.to_owned(),
    ]
}

fn export(place: &Place, id: &str, output: &Path, force: bool) -> Result<(), CliError> {
    let here = local(place)?.iter().find(|branch| branch.id == id).map(described);
    let (found, archive) = match here {
        Some(found) => (found, None),
        None => {
            let branch = archived(place)?.into_iter().find(|branch| branch.id == id);
            let branch = branch.ok_or_else(|| {
                CliError::usage(format!("no branch {id:?} is parked here; `litefs parked list` has them"))
            })?;
            (Found { branch, file: None, archived: true }, Some(place::archive(place)?))
        }
    };
    let Found { branch, file, .. } = found;
    if branch.size.is_none() {
        return Err(CliError::Failed(anyhow::anyhow!(
            "branch {id} has no database: it was dropped there, at {}",
            branch.pos
        )));
    }
    let destination = Destination::new(output, force)?;
    let attempt = format!("writing {}", destination.temp().display());
    let mut to = File::create_new(destination.temp()).map_err(CliError::io(&attempt))?;
    match (file, archive) {
        (Some(file), _) => {
            let attempt = format!("copying {}", file.display());
            let mut from = File::open(&file).map_err(CliError::io(&attempt))?;
            std::io::copy(&mut from, &mut to).map_err(CliError::io(&attempt))?;
        }
        (None, Some(archive)) => archive.take_branch(&branch, &mut to)?,
        (None, None) => {}
    }
    to.flush().map_err(CliError::io(&attempt))?;
    destination.finish()?;
    println!("{}: {} at {}", output.display(), branch.db, branch.pos);
    Ok(())
}
