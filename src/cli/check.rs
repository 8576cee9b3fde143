//! `litefs config check`. Must not start anything.

use std::path::Path;

use crate::config::{self, Config};

use super::error::CliError;
use super::place;

pub fn check(file: Option<&Path>, expand_env: bool) -> Result<(), CliError> {
    let file = config::find(file)?;
    let config = Config::load(&file, expand_env)?;
    place::configured(&config)?;
    println!("{} is good", file.display());
    println!("  mount    {}", config.fuse.dir.display());
    println!("  data     {}", config.data.dir.display());
    println!("  archive  {}", config.storage.url);
    println!("  api      http://{}", config.http.addr);
    for command in &config.exec {
        println!("  exec     {command}");
    }
    Ok(())
}
