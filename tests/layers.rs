//! Modules use those before them and never those after them (docs/ARCHITECTURE.md):
//! fails with the file and line of every step upwards.

use std::path::{Path, PathBuf};

/// Lowest first.
const LAYERS: [&str; 15] = [
    "words", "ltx", "sqlite", "object", "db", "lease", "archive", "store", "fuse", "peer", "proxy", "exec",
    "node", "config", "cli",
];

fn layer(module: &str) -> usize {
    LAYERS.iter().position(|layer| *layer == module).unwrap_or_else(|| {
        panic!(
            "src/{module} has no layer: put it where it belongs in tests/layers.rs and docs/ARCHITECTURE.md"
        )
    })
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("list src") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a line of code names: `crate::x`, and `crate::{x, y::z}` on one
/// line.
fn named(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let word = |text: &str| -> String {
        text.chars().take_while(|char| char.is_ascii_alphanumeric() || *char == '_').collect()
    };
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let after = &code[at + "crate::".len()..];
        match after.strip_prefix('{') {
            None => names.push(word(after)),
            Some(list) => {
                let mut depth = 0;
                let mut start = 0;
                for (at, char) in list.char_indices() {
                    match char {
                        '{' => depth += 1,
                        '}' if depth > 0 => depth -= 1,
                        ',' | '}' if depth == 0 => {
                            names.push(word(list[start..at].trim()));
                            start = at + 1;
                            if char == '}' {
                                break;
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names.retain(|name| LAYERS.contains(&name.as_str()));
    names
}

#[test]
fn no_module_uses_a_later_layer() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut upwards = Vec::new();
    for file in files {
        let below = file.strip_prefix(&src).expect("below src");
        let first = below.components().next().expect("a name").as_os_str().to_string_lossy();
        let module = first.trim_end_matches(".rs");
        if matches!(module, "lib" | "main") {
            continue;
        }
        let own = layer(module);
        let text = std::fs::read_to_string(&file).expect("read");
        for (at, line) in text.lines().enumerate() {
            for name in named(line) {
                if layer(&name) > own {
                    upwards.push(format!("src/{}:{}: {module} uses {name}", below.display(), at + 1));
                }
            }
        }
    }
    assert!(upwards.is_empty(), "a module may use those before it only:\n{}", upwards.join("\n"));
}

#[test]
fn the_finder_sees_every_form() {
    assert_eq!(named("use crate::ltx::Header;"), ["ltx"]);
    assert_eq!(named("use crate::{ltx, words::{Pos, Txid}, cli};"), ["ltx", "words", "cli"]);
    assert_eq!(named("let x = crate::node::run(crate::config::find());"), ["node", "config"]);
    assert!(named("// crate::cli").is_empty());
}
