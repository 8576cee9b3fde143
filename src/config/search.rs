//! Where the configuration is. Must not read it.

use std::path::{Path, PathBuf};

use super::error::ConfigError;

const NAME: &str = "litefs.toml";

/// The file that was named, or the first there is of `./litefs.toml`,
/// `~/litefs.toml`, `/etc/litefs.toml`.
pub fn find(named: Option<&Path>) -> Result<PathBuf, ConfigError> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    first_of(std::iter::once(PathBuf::from(".")).chain(home).chain(std::iter::once(PathBuf::from("/etc"))))
}

fn first_of(dirs: impl Iterator<Item = PathBuf>) -> Result<PathBuf, ConfigError> {
    let looked: Vec<_> = dirs.map(|dir| dir.join(NAME)).collect();
    match looked.iter().find(|file| file.is_file()) {
        Some(file) => Ok(file.clone()),
        None => Err(ConfigError::NotFound { looked }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_places_wins_and_none_names_all() {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a directory")).collect();
        let paths = || dirs.iter().map(|dir| dir.path().to_owned());
        let said = first_of(paths()).expect_err("none there").to_string();
        assert!(dirs.iter().all(|dir| said.contains(&dir.path().display().to_string())), "{said}");
        for dir in dirs.iter().rev() {
            let file = dir.path().join(NAME);
            std::fs::write(&file, "").expect("write");
            assert_eq!(first_of(paths()), Ok(file));
        }
        assert_eq!(find(Some(Path::new("x.toml"))), Ok(PathBuf::from("x.toml")));
    }
}
