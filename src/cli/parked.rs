//! `litefs parked`: branches that lost, in a node's data directory. Must not change
//! them.

use std::fs::File;
use std::path::Path;

use crate::config::{self, Config};
use crate::store::{self, ParkedBranch};

use super::args::Parked;
use super::destination::Destination;
use super::error::CliError;
use super::table;

pub fn parked(command: &Parked) -> Result<(), CliError> {
    match command {
        Parked::List { config } => list(&branches(config.as_deref())?),
        Parked::Export { id, output, force, config } => {
            export(&branches(config.as_deref())?, id, output, *force)
        }
    }
}

fn branches(config: Option<&Path>) -> Result<Vec<ParkedBranch>, CliError> {
    let config = Config::load(&config::find(config)?, true)?;
    Ok(store::parked(&config.data.dir)?)
}

fn list(branches: &[ParkedBranch]) -> Result<(), CliError> {
    if branches.is_empty() {
        println!("no branch was ever parked here");
        return Ok(());
    }
    let row = |branch: &ParkedBranch| {
        vec![
            branch.id.clone(),
            branch.parked.db.to_string(),
            branch.parked.pos.to_string(),
            branch.parked.at.to_string(),
            branch.size.map_or("dropped".to_owned(), table::bytes),
        ]
    };
    let rows: Vec<_> = branches.iter().map(row).collect();
    print!("{}", table::render(&["id", "database", "position", "parked", "size"], &rows));
    Ok(())
}

fn export(branches: &[ParkedBranch], id: &str, output: &Path, force: bool) -> Result<(), CliError> {
    let Some(branch) = branches.iter().find(|branch| branch.id == id) else {
        return Err(CliError::usage(format!(
            "no branch {id:?} is parked here; `litefs parked list` has them"
        )));
    };
    if branch.size.is_none() {
        return Err(CliError::Failed(anyhow::anyhow!(
            "branch {id} has no database: it was dropped there, at {}",
            branch.parked.pos
        )));
    }
    let destination = Destination::new(output, force)?;
    let attempt = format!("copying {}", branch.file.display());
    let mut from = File::open(&branch.file).map_err(CliError::io(&attempt))?;
    let mut to = File::create_new(destination.temp()).map_err(CliError::io(&attempt))?;
    std::io::copy(&mut from, &mut to).map_err(CliError::io(&attempt))?;
    destination.finish()?;
    println!("{}: {} at {}", output.display(), branch.parked.db, branch.parked.pos);
    Ok(())
}
