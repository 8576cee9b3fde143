//! What a path below the mount means. Pure: must not look at the disk.

use crate::db::FileKind;
use crate::words::DbName;

/// The meaning of a path that is no directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// A file of a database.
    File(DbName, FileKind),
    /// `<db>-pos`.
    Pos(DbName),
    /// `<db>-lock`.
    Lock(DbName),
    /// `.primary`.
    Primary,
    /// `.lag`.
    Lag,
}

/// The meaning of `path` (no leading slash); `None` for a name nothing can have.
pub(super) fn parse(path: &str) -> Option<Name> {
    match path {
        ".primary" => return Some(Name::Primary),
        ".lag" => return Some(Name::Lag),
        _ => {}
    }
    let stem = |suffix: &str| path.strip_suffix(suffix).and_then(|stem| DbName::new(stem).ok());
    if let Some(db) = stem("-pos") {
        return Some(Name::Pos(db));
    }
    if let Some(db) = stem("-lock") {
        return Some(Name::Lock(db));
    }
    for kind in [FileKind::Journal, FileKind::Wal, FileKind::Shm] {
        if let Some(db) = stem(kind.suffix()) {
            return Some(Name::File(db, kind));
        }
    }
    DbName::new(path).ok().map(|db| Name::File(db, FileKind::Database))
}

/// The path of `name` in the directory `parent` (empty: the root).
pub(super) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

/// The directory that `path` is in, and its name there.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn db(name: &str) -> DbName {
        DbName::new(name).expect("a name")
    }

    #[test]
    fn a_suffix_decides_what_a_path_means() {
        assert_eq!(parse("a.db"), Some(Name::File(db("a.db"), FileKind::Database)));
        assert_eq!(parse("a.db-journal"), Some(Name::File(db("a.db"), FileKind::Journal)));
        assert_eq!(parse("t/a-wal"), Some(Name::File(db("t/a"), FileKind::Wal)));
        assert_eq!(parse("a-shm"), Some(Name::File(db("a"), FileKind::Shm)));
        assert_eq!(parse("a-pos"), Some(Name::Pos(db("a"))));
        assert_eq!(parse("a-lock"), Some(Name::Lock(db("a"))));
        assert_eq!(parse(".primary"), Some(Name::Primary));
        assert_eq!(parse(".lag"), Some(Name::Lag));
    }

    #[test]
    fn names_that_nothing_can_have_mean_nothing() {
        for path in ["-wal", ".hidden", "t/.lag", "a-wal-wal", "", "a-pos-journal"] {
            assert_eq!(parse(path), None, "{path:?}");
        }
    }

    #[test]
    fn join_and_split_are_inverse() {
        for (parent, name) in [("", "a"), ("t", "a"), ("t/u", "a-wal")] {
            assert_eq!(split(&join(parent, name)), (parent, name));
        }
    }
}
