//! The command line: parses, calls, prints, maps errors to exit codes. Must not
//! hold logic that another program would want to call.

mod args;
mod change_sets;
mod check;
mod destination;
mod error;
mod history;
mod ltx;
mod mount;
mod parked;
mod place;
mod progress;
mod remote;
mod restore;
mod role;
mod run;
mod status;
mod table;
mod time;
mod transfer;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use error::CliError;

/// Runs the program: everything from the arguments to the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            if let Some(text) = error.text() {
                eprintln!("litefs: {text}");
            }
            ExitCode::from(error.code())
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Mount(args) => return mount::mount(args),
        Command::Run(args) => run::run(&args),
        Command::Status(args) => status::status(&args),
        Command::Import(args) => transfer::import(&args),
        Command::Export(args) => transfer::export(&args),
        Command::Promote(args) => role::promote(&args),
        Command::Handoff(args) => role::handoff(&args),
        Command::Restore(args) => restore::restore(&args),
        Command::History(args) => history::history(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Ltx(command) => ltx::ltx(&command),
        Command::Parked(command) => parked::parked(&command),
        Command::Config(args::Config::Check { file, no_expand_env }) => {
            check::check(file.as_deref(), !no_expand_env)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "litefs", &mut std::io::stdout());
            Ok(())
        }
        Command::InternalCopy { source, target } => {
            crate::node::internal_copy(&source, &target).map_err(Into::into)
        }
        Command::Version => {
            println!("litefs {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
