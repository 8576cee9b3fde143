//! `litefs promote` and `litefs handoff`. Must not decide whether it is safe: the
//! node does.

use super::args::{Handoff, Remote};
use super::error::CliError;
use super::remote;

pub fn promote(args: &Remote) -> Result<(), CliError> {
    let client = remote::client(args)?;
    client.promote()?;
    println!("{} is the primary", client.info()?.hostname);
    Ok(())
}

pub fn handoff(args: &Handoff) -> Result<(), CliError> {
    remote::client(&args.remote)?.handoff(&args.node)?;
    println!("{} has the lease", args.node);
    Ok(())
}
