//! A command of the exec list and the nodes on which it runs. Must not run it.

use super::split::{BadCommand, split};

/// A command that the node runs once it stands at the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments; never empty.
    argv: Vec<String>,
    /// Run only on nodes that may become primary.
    pub if_candidate: bool,
    /// Run only if this node is the primary when its turn comes.
    pub if_primary: bool,
}

/// What decides whether a command runs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// This node may become primary.
    pub candidate: bool,
    /// This node is the primary.
    pub primary: bool,
}

impl Command {
    /// A command line, split into words.
    pub fn from_line(line: &str) -> Result<Command, BadCommand> {
        Ok(Command { argv: split(line)?, if_candidate: false, if_primary: false })
    }

    /// A program and its arguments, as they are.
    pub fn from_words(argv: Vec<String>) -> Result<Command, BadCommand> {
        if argv.first().is_none_or(String::is_empty) {
            return Err(BadCommand { text: argv.join(" "), why: "it names no program".to_owned() });
        }
        Ok(Command { argv, if_candidate: false, if_primary: false })
    }

    /// The program.
    pub fn program(&self) -> &str {
        self.argv.first().map_or("", String::as_str)
    }

    /// Its arguments.
    pub fn arguments(&self) -> &[String] {
        self.argv.get(1..).unwrap_or_default()
    }

    /// Whether it runs on a node of this standing.
    pub fn runs_on(&self, standing: Standing) -> bool {
        (!self.if_candidate || standing.candidate) && (!self.if_primary || standing.primary)
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.argv.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_must_all_hold() {
        let mut command = Command::from_line("migrate --all").expect("a command");
        assert_eq!((command.program(), command.arguments()), ("migrate", &["--all".to_owned()][..]));
        let standing = |candidate, primary| Standing { candidate, primary };
        assert!(command.runs_on(standing(false, false)));
        command.if_primary = true;
        assert!(!command.runs_on(standing(true, false)));
        assert!(command.runs_on(standing(true, true)));
        command.if_candidate = true;
        assert!(!command.runs_on(standing(false, true)));
        assert!(Command::from_words(Vec::new()).is_err());
    }
}
