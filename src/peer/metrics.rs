//! The metrics of a node in Prometheus' text format, made from its status; with
//! LiteFS's names where they mean the same. Must not keep state.

use std::fmt::Write as _;

use super::service::{ArchiveState, Info, Role, Status};

/// One page of metrics.
pub fn render(info: &Info, status: &Status) -> String {
    let mut page = Page(String::new());
    let primary = f64::from(u8::from(status.role == Role::Primary));
    page.one("litefs_is_primary", "1 if this node is the primary", primary);
    page.one("litefs_candidate", "1 if this node may become primary", f64::from(u8::from(info.candidate)));
    page.one("litefs_db_count", "databases on this node", status.databases.len() as f64);
    if let Some(lag) = status.lag_ms {
        page.one("litefs_lag_seconds", "how far this node is behind the primary", lag as f64 / 1000.0);
    }
    if let Some(epoch) = status.epoch {
        page.one("litefs_epoch", "the epoch of the lease", epoch.get() as f64);
    }
    page.one("litefs_parked", "branches that lost and are kept", status.parked as f64);
    databases(&mut page, status);
    archive(&mut page, status);
    page.0
}

fn databases(page: &mut Page, status: &Status) {
    let gauges: [Gauge; 6] = [
        ("litefs_db_txid", "the last transaction", |db| db.pos.txid.get() as f64),
        ("litefs_db_pages", "pages in the database", |db| f64::from(db.pages)),
        ("litefs_db_commit_count", "transactions committed or applied", |db| db.commits as f64),
        ("litefs_db_unarchived", "transactions the archive does not have yet", |db| db.unarchived as f64),
        ("litefs_db_archived_txid", "the last transaction in the archive", |db| {
            db.archived.txid.get() as f64
        }),
        ("litefs_db_hydrated_ratio", "the share of its pages that is here", |db| db.hydrated),
    ];
    for (name, help, value) in gauges {
        page.head(name, help);
        for db in &status.databases {
            page.line(name, &[("db", db.name.as_str())], value(db));
        }
    }
}

type Gauge = (&'static str, &'static str, fn(&super::service::DatabaseStatus) -> f64);

fn archive(page: &mut Page, status: &Status) {
    let reachable = matches!(status.archive.state, ArchiveState::Synced | ArchiveState::Uploading);
    page.one("litefs_archive_up", "1 if the archive takes what is put", f64::from(u8::from(reachable)));
    let archive = &status.archive;
    page.one(
        "litefs_archive_unarchived",
        "change sets the archive does not have yet",
        archive.unarchived as f64,
    );
    page.one("litefs_archive_unarchived_bytes", "bytes of their pages", archive.unarchived_bytes as f64);
    let oldest = archive.oldest.map_or(0.0, |time| time.millis() as f64 / 1000.0);
    page.one(
        "litefs_archive_oldest_unarchived_seconds",
        "when the oldest of them was committed; 0: none",
        oldest,
    );
    page.one("litefs_archive_backlog_full", "1 if writes are refused", f64::from(u8::from(archive.full)));
    page.head("litefs_archive_requests", "requests to the archive since the start");
    for (kind, count) in &status.archive.requests {
        page.line("litefs_archive_requests", &[("kind", kind)], *count as f64);
    }
    page.one("litefs_archive_bytes_out", "bytes put since the start", status.archive.bytes_out as f64);
    page.one("litefs_archive_bytes_in", "bytes got since the start", status.archive.bytes_in as f64);
}

struct Page(String);

impl Page {
    fn one(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help);
        self.line(name, &[], value);
    }

    fn head(&mut self, name: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            self.0.push(if at == 0 { '{' } else { ',' });
            let _ = write!(self.0, "{label}=\"{}\"", escape(text));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

/// Label values escape these three (Prometheus text format).
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::testing::{info, status};

    #[test]
    fn metrics_carry_litefs_names_and_escaped_labels() {
        let text = render(&info(), &status());
        assert!(text.contains("\nlitefs_db_txid{db=\"a \\\"b\\\".db\"} 7\n"), "{text}");
        assert!(text.starts_with("# HELP litefs_is_primary"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let value = line.rsplit(' ').next().expect("a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
