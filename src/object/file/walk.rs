//! Listing a directory tree as keys. Must not follow symbolic links, nor fail on
//! what is deleted meanwhile.

use std::fs;
use std::io;
use std::path::Path;

use super::is_absent;
use super::root::is_reserved;
use crate::object::ObjectInfo;

/// Every object below `root` whose key begins with `prefix` and comes after
/// `after`, in ascending byte order.
pub(super) fn list(root: &Path, prefix: &str, after: Option<&str>) -> io::Result<Vec<ObjectInfo>> {
    // The deepest directory that holds every key with this prefix.
    let base = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
    if base.split('/').any(|component| component == "..") {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let mut pending = vec![base.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = match fs::read_dir(root.join(&directory)) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            // A name that is not UTF-8 is not ours.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let key = format!("{directory}{name}");
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(error),
            };
            if is_reserved(&key) {
                continue;
            }
            if kind.is_dir() {
                let below = format!("{key}/");
                if may_hold(&below, prefix, after) {
                    pending.push(below);
                }
            } else if kind.is_file()
                && key.starts_with(prefix)
                && after.is_none_or(|after| key.as_str() > after)
            {
                match entry.metadata() {
                    Ok(meta) => found.push(ObjectInfo { key, size: meta.len() }),
                    Err(error) if is_absent(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

/// Whether a directory (with its slash) can hold keys that begin with `prefix` and
/// come after `after`.
fn may_hold(directory: &str, prefix: &str, after: Option<&str>) -> bool {
    let wanted = directory.starts_with(prefix) || prefix.starts_with(directory);
    wanted && after.is_none_or(|after| directory > after || after.starts_with(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_that_can_hold_wanted_keys_are_read() {
        assert!(may_hold("log/", "", None));
        assert!(may_hold("log/", "log/00", None));
        assert!(!may_hold("log/", "db/", None));
        assert!(may_hold("log/", "", Some("log/17")));
        assert!(may_hold("log/", "", Some("a")));
        assert!(!may_hold("log/", "", Some("manifest.json")));
    }
}
