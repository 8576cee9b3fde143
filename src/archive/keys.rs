//! The keys of the archive's objects (docs/FORMATS.md). Must not read or write them.

use crc_fast::{CrcAlgorithm, checksum};

use crate::ltx;
use crate::words::{DbName, Epoch, Seq, Timestamp, Txid};

/// The one object that changes: see `Manifest`.
pub const MANIFEST: &str = "manifest.json";

/// Under this lie the segments of the log.
pub const LOG: &str = "log/";

/// Under this lies what is compacted, by database.
pub const DATABASES: &str = "db/";

/// Under this lie the change sets that are too large for a segment, by epoch.
pub const BIG: &str = "big/";

/// Under this lie the branches that lost.
pub const PARKED: &str = "parked/";

/// How the key of a branch's description ends.
pub const NOTE: &str = ".json";

/// The longest escaped database path: an object's key has at most 900 bytes
/// (crate::object), and the level and file name follow.
const MAX_PATH: usize = 700;
/// The longest escaped component: it must fit a file name (NAME_MAX is 255).
const MAX_COMPONENT: usize = 200;

/// The key of a log segment. Byte order is the order of the numbers.
pub fn segment(seq: Seq) -> String {
    format!("{LOG}{:016x}", seq.get())
}

/// The number of the segment with this key.
pub fn parse_segment(key: &str) -> Option<Seq> {
    let hex = key.strip_prefix(LOG)?;
    let canonical = hex.len() == 16 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(hex, 16).ok().filter(|_| canonical).map(Seq::new)
}

/// The key of a compacted file or a snapshot: where Litestream looks for it.
pub fn level(db: &DbName, level: u8, min: Txid, max: Txid) -> String {
    format!("{DATABASES}{}/{level:04x}/{}", escape(db), ltx::format_name(min, max))
}

/// The key of a pack: change sets one by one, as they were committed.
pub fn pack(db: &DbName, min: Txid, max: Txid) -> String {
    format!("{DATABASES}{}/tx/{min}-{max}.pack", escape(db))
}

/// The key of a change set that is too large for a segment. By its epoch it is known
/// when nobody can name it any more; `unique` tells apart two writers of one epoch,
/// of which one is not to be.
pub fn big(epoch: Epoch, unique: u64, db: &DbName, max: Txid) -> String {
    format!("{BIG}{:016x}-{unique:016x}/{}/{max}.ltx", epoch.get(), escape(db))
}

/// The epoch in which the object with this key was put.
pub fn parse_big(key: &str) -> Option<Epoch> {
    let hex = key.strip_prefix(BIG)?.split('-').next()?;
    u64::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 16).map(Epoch::new)
}

/// The key of a branch that lost. Byte order is the order of time.
pub fn parked(at: Timestamp, id: &str) -> String {
    format!("{PARKED}{:016x}-{}.db.zst", at.millis().max(0), shorten(id, MAX_COMPONENT))
}

/// The key of its description.
pub fn parked_note(at: Timestamp, id: &str) -> String {
    format!("{PARKED}{:016x}-{}{NOTE}", at.millis().max(0), shorten(id, MAX_COMPONENT))
}

/// When the branch was parked whose object has this key.
pub fn parse_parked(key: &str) -> Option<Timestamp> {
    let hex = key.strip_prefix(PARKED)?.split('-').next()?;
    i64::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 16).map(Timestamp::from_millis)
}

/// The database's name as part of a key: letters, digits, `.`, `_`, `-` and `/` as
/// they are, all else percent-encoded; a part that would be too long is cut and
/// ends in `~` and a checksum of the whole name.
fn escape(db: &DbName) -> String {
    let parts: Vec<String> = db.as_str().split('/').map(|part| shorten(part, MAX_COMPONENT)).collect();
    let path = parts.join("/");
    if path.len() <= MAX_PATH { path } else { shorten(db.as_str(), MAX_COMPONENT) }
}

fn shorten(part: &str, max: usize) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        let piece = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        };
        out.push_str(&piece);
    }
    if out.len() <= max {
        return out;
    }
    let mut cut: String = out.chars().take(max - 17).collect();
    if let Some(at) = cut.rfind('%').filter(|at| at + 3 > cut.len()) {
        cut.truncate(at);
    }
    format!("{cut}~{:016x}", checksum(CrcAlgorithm::Crc64Nvme, part.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segments_key_reads_back_and_sorts_by_number() {
        for number in [1, 15, 16, 255, 0x1_0000_0000, u64::MAX] {
            assert_eq!(parse_segment(&segment(Seq::new(number))), Some(Seq::new(number)));
        }
        assert!(segment(Seq::new(9)) < segment(Seq::new(10)));
        for bad in ["log/", "log/1", "log/000000000000000G", "log/000000000000000A", "db/0000000000000001"] {
            assert_eq!(parse_segment(bad), None, "{bad}");
        }
    }

    #[test]
    fn keys_fit_every_store_and_tell_databases_apart() {
        let name = |text: &str| DbName::new(text).expect("a name");
        let one = Txid::new(1);
        assert_eq!(
            level(&name("tenants/ü 7.db"), 9, one, one),
            "db/tenants/%C3%BC%207.db/0009/0000000000000001-0000000000000001.ltx"
        );
        let long = [
            name(&"ü".repeat(110)),
            name(&format!("{}a", "ü".repeat(109))),
            name(&["x".repeat(200), "y".repeat(200), "z".repeat(200), "z".repeat(200)].join("/")),
        ];
        let mut keys: Vec<String> = long.iter().map(|db| big(Epoch::new(1), u64::MAX, db, one)).collect();
        for key in &keys {
            assert!(key.len() <= 900 && key.split('/').all(|part| part.len() <= 255), "{key}");
            assert!(key.is_ascii());
        }
        keys.dedup();
        assert_eq!(keys.len(), 3);
    }
}
