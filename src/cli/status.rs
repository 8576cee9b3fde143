//! `litefs status`: what a node is and where its databases stand. Must not compute
//! anything that the node does not say.

use std::fmt::Write as _;

use crate::peer;

use super::args;
use super::error::CliError;
use super::{remote, table};

pub fn status(args: &args::Status) -> Result<(), CliError> {
    let status = remote::client(&args.remote)?.status()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", render(&status));
    }
    Ok(())
}

fn render(status: &peer::Status) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<9} {value}");
    };
    line("role", status.role.to_string());
    line("primary", status.primary.clone().unwrap_or_else(|| "unknown".to_owned()));
    if let Some(epoch) = status.epoch {
        line("epoch", epoch.to_string());
    }
    line("node", status.node.to_string());
    line("cluster", status.cluster.map_or("not known yet".to_owned(), |cluster| cluster.to_string()));
    if let Some(lag) = status.lag_ms.filter(|_| status.role == peer::Role::Replica) {
        line("lag", format!("{lag} ms"));
    }
    line("mount", mount(&status.mount));
    line("archive", archive(&status.archive));
    for replica in &status.replicas {
        line(
            "replica",
            format!("{} ({}), {} transactions behind", replica.hostname, replica.node, replica.behind),
        );
    }
    if status.parked > 0 {
        line("parked", format!("{} branches that lost are kept", status.parked));
    }
    line("version", format!("{}, started {}", status.version, status.started));
    out.push('\n');
    out.push_str(&databases(status));
    out
}

fn mount(mount: &peer::MountStatus) -> String {
    let state = if mount.mounted { "" } else { " (not mounted)" };
    let passthrough = if mount.passthrough { ", passthrough" } else { "" };
    format!("{}{state}{passthrough}", mount.path)
}

fn archive(archive: &peer::ArchiveStatus) -> String {
    let requests: u64 = archive.requests.values().sum();
    let mut text = format!(
        "{} {}, {requests} requests, {} out, {} in",
        archive.url,
        archive.state.as_str(),
        table::bytes(archive.bytes_out),
        table::bytes(archive.bytes_in)
    );
    if archive.unarchived > 0 {
        let _ = write!(
            text,
            "\n          it lacks {} change sets, {}{}",
            archive.unarchived,
            table::bytes(archive.unarchived_bytes),
            archive.oldest.map_or(String::new(), |oldest| format!(", the oldest of {oldest}"))
        );
    }
    if archive.full {
        text.push_str("\n          the backlog is full: writes are refused until it has some of it");
    }
    if let Some(error) = &archive.error {
        let _ = write!(text, "\n          {error}");
    }
    text
}

fn databases(status: &peer::Status) -> String {
    if status.databases.is_empty() {
        return "no databases yet\n".to_owned();
    }
    let row = |db: &peer::DatabaseStatus| {
        vec![
            db.name.to_string(),
            db.pos.to_string(),
            db.page_size.map_or("-".to_owned(), |size| size.to_string()),
            db.pages.to_string(),
            db.unarchived.to_string(),
            format!("{:.0}%", db.hydrated * 100.0),
            db.modified.map_or("-".to_owned(), |time| time.to_string()),
        ]
    };
    let rows: Vec<_> = status.databases.iter().map(row).collect();
    table::render(&["database", "position", "page", "pages", "unarchived", "here", "changed"], &rows)
}
