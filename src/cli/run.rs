//! `litefs run`: a command on the right node. It replaces this process, so that
//! signals and exit code are its own. Must not run it anywhere else.

use std::os::unix::process::CommandExt;

use super::args::Run;
use super::error::CliError;
use super::remote;

pub fn run(args: &Run) -> Result<(), CliError> {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(CliError::usage("litefs run needs a command: litefs run -- CMD ARGS…"));
    };
    if args.promote || args.if_primary || args.if_candidate {
        let client = remote::client(&args.remote)?;
        let info = client.info()?;
        let wrong = match () {
            () if args.if_candidate && !info.candidate => Some("may not become primary"),
            () if args.if_primary && !info.is_primary => Some("is not the primary"),
            () => None,
        };
        if let Some(wrong) = wrong {
            eprintln!("litefs: {program} is not run: this node ({}) {wrong}", info.hostname);
            return Ok(());
        }
        if args.promote && !info.is_primary {
            client.promote()?;
        }
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(CliError::io(format!("running {program}"))(error))
}
