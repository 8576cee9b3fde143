//! `litefs verify`: prints what is wrong with the archive. Must not repair.

use crate::archive::{Archive, ArchiveError, Severity};
use crate::words::DbName;

use super::args::Verify;
use super::error::CliError;
use super::place;
use super::transfer::db_name;

pub fn verify(args: &Verify) -> Result<(), CliError> {
    let db = args.name.as_deref().map(db_name).transpose()?;
    let archive = place::archive(&args.place)?;
    let findings = archive.verify(db.as_ref(), args.deep)?;
    let mut damage = 0;
    for finding in &findings {
        let severity = match finding.severity {
            Severity::Damage => "damage",
            Severity::Leftover => "leftover",
        };
        damage += usize::from(finding.severity == Severity::Damage);
        // Most errors name the object themselves.
        match finding.why.contains(&finding.what) {
            true => println!("{severity}: {}", finding.why),
            false => println!("{severity}: {}: {}", finding.what, finding.why),
        }
    }
    if damage > 0 {
        let how = if damage == 1 { "fault" } else { "faults" };
        return Err(CliError::Failed(anyhow::anyhow!(
            "{}: {damage} {how} found",
            archive.store().describe()
        )));
    }
    let checked = checked(&archive, db)?;
    let how = if args.deep { "everything reads back as it was committed" } else { "complete, without a gap" };
    println!("{checked}: {how}");
    Ok(())
}

/// What was checked, in words; an error if there is no such database.
fn checked(archive: &Archive, db: Option<DbName>) -> Result<String, CliError> {
    let head = archive.head()?;
    match db {
        Some(db) if head.standing(&db).is_none() => Err(ArchiveError::NoDatabase { db }.into()),
        Some(db) => Ok(db.to_string()),
        None => Ok(match head.databases().len() {
            1 => "1 database".to_owned(),
            count => format!("{count} databases"),
        }),
    }
}
