//! What a database holds, as one text that two equal databases share: schema,
//! every row, and what PRAGMAs store in the header.

use std::fmt::Write as _;
use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

/// The content over an open connection, a line a row; large values by length and
/// CRC.
pub fn describe(db: &Connection) -> rusqlite::Result<String> {
    let mut text = String::new();
    for pragma in ["page_size", "auto_vacuum", "user_version", "application_id", "encoding"] {
        let value: String =
            db.query_row(&format!("SELECT CAST({pragma} AS TEXT) FROM pragma_{pragma}"), [], |row| {
                row.get(0)
            })?;
        let _ = writeln!(text, "{pragma} {value}");
    }
    let mut schema = db.prepare("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")?;
    let rows = schema.query_map([], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, Option<String>>(2)?))
    })?;
    let mut tables = Vec::new();
    for row in rows {
        let (kind, name, sql) = row?;
        let _ = writeln!(text, "{kind} {name} {}", sql.unwrap_or_default());
        if kind == "table" {
            tables.push(name);
        }
    }
    for table in tables {
        let _ = writeln!(text, "rows of {table}");
        let mut select = db.prepare(&format!("SELECT rowid, * FROM \"{table}\" ORDER BY rowid"))?;
        let columns = select.column_count();
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                value(&mut text, row.get_ref(column)?);
            }
            text.push('\n');
        }
    }
    Ok(text)
}

fn value(text: &mut String, value: ValueRef<'_>) {
    let _ = match value {
        ValueRef::Null => write!(text, "|null"),
        ValueRef::Integer(number) => write!(text, "|{number}"),
        ValueRef::Real(number) => write!(text, "|{number:?}"),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) if bytes.len() > 64 => {
            write!(text, "|{} bytes, crc {:016x}", bytes.len(), crc(bytes))
        }
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            write!(text, "|{:?}", String::from_utf8_lossy(bytes))
        }
    };
}

fn crc(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// The content of a database file that nobody writes to.
pub fn of_file(path: &Path) -> String {
    let open = || {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.busy_timeout(super::PATIENCE)?;
        let integrity: String = db.query_row("PRAGMA integrity_check(3)", [], |row| row.get(0))?;
        assert_eq!(integrity, "ok", "integrity of {}", path.display());
        describe(&db)
    };
    open().unwrap_or_else(|error: rusqlite::Error| panic!("read {}: {error}", path.display()))
}

/// The first line in which two contents differ, for a message.
pub fn first_difference(left: &str, right: &str) -> Option<String> {
    if left == right {
        return None;
    }
    let (mut a, mut b) = (left.lines(), right.lines());
    for number in 1.. {
        match (a.next(), b.next()) {
            (None, None) => break,
            (x, y) if x == y => {}
            (x, y) => return Some(format!("line {number}: {x:?} against {y:?}")),
        }
    }
    Some("they differ in line ends".to_owned())
}
