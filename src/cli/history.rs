//! `litefs history`: what the archive has, and the points in time that a database
//! can be restored to. Must not restore.

use serde::Serialize;

use crate::archive::{Archive, Head, RestorePoint};
use crate::words::{Clock, DbName, SystemClock, Timestamp};

use super::args::History;
use super::error::CliError;
use super::transfer::db_name;
use super::{place, table, time};

pub fn history(args: &History) -> Result<(), CliError> {
    let now = SystemClock.now();
    let at = |text: &Option<String>| text.as_deref().map(|text| time::parse(text, now)).transpose();
    let from = at(&args.from)?.unwrap_or(Timestamp::from_millis(i64::MIN));
    let to = at(&args.to)?.unwrap_or(Timestamp::from_millis(i64::MAX));
    let db = args.name.as_deref().map(db_name).transpose()?;
    let archive = place::archive(&args.place)?;
    let head = archive.head()?;
    match db {
        Some(db) => points(&archive, &head, &db, (from, to), args.json),
        None => databases(&head, args.json),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DatabaseRow {
    name: DbName,
    pos: String,
    page_size: u32,
    pages: u32,
    dropped: bool,
    time: String,
    /// Bytes of its history in the archive.
    size: u64,
}

fn databases(head: &Head, json: bool) -> Result<(), CliError> {
    let size = |db: &DbName| -> u64 {
        let objects = head.objects(db).iter().map(|object| object.size).sum::<u64>();
        objects + head.tail_of(db).map(|(_, entry)| entry.size()).sum::<u64>()
    };
    let row = |(name, stands): (&DbName, &crate::archive::Standing)| DatabaseRow {
        name: name.clone(),
        pos: stands.pos.to_string(),
        page_size: stands.page_size.get(),
        pages: stands.commit,
        dropped: stands.is_dropped(),
        time: stands.timestamp.to_string(),
        size: size(name),
    };
    let rows: Vec<DatabaseRow> = head.databases().iter().map(row).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    if rows.is_empty() {
        println!("the archive has no databases yet");
        return Ok(());
    }
    let cells = |row: &DatabaseRow| {
        let size = u64::from(row.page_size) * u64::from(row.pages);
        let size = if row.dropped { "dropped".to_owned() } else { table::bytes(size) };
        vec![row.name.to_string(), row.pos.clone(), row.time.clone(), size, table::bytes(row.size)]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    print!("{}", table::render(&["database", "position", "changed", "size", "archived"], &rows));
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PointRow {
    txid: String,
    checksum: String,
    time: String,
    page_size: u32,
    pages: u32,
    dropped: bool,
    snapshot: bool,
    /// Bytes of its change set in the archive.
    size: u64,
}

fn points(
    archive: &Archive,
    head: &Head,
    db: &DbName,
    (from, to): (Timestamp, Timestamp),
    json: bool,
) -> Result<(), CliError> {
    let row = |point: RestorePoint| PointRow {
        txid: point.pos.txid.to_string(),
        checksum: point.pos.checksum.to_string(),
        time: point.timestamp.to_string(),
        page_size: point.page_size.get(),
        pages: point.commit,
        dropped: point.commit == 0,
        snapshot: point.snapshot,
        size: point.size,
    };
    let rows: Vec<PointRow> = archive.history(head, db, from, to)?.into_iter().map(row).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    if rows.is_empty() {
        println!("{db} has no restore points in that time");
        return Ok(());
    }
    let kind = |row: &PointRow| match (row.dropped, row.snapshot) {
        (true, _) => "dropped",
        (false, true) => "snapshot",
        (false, false) => "change",
    };
    let cells = |row: &PointRow| {
        let pages = row.pages.to_string();
        vec![row.txid.clone(), row.time.clone(), kind(row).to_owned(), pages, table::bytes(row.size)]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    print!("{}", table::render(&["txid", "time", "kind", "pages", "size"], &rows));
    Ok(())
}
