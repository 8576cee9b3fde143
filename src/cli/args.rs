//! The command line: commands, their arguments, their help. Must not do anything.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// SQLite databases that live in a mount and never get lost.
#[derive(Debug, Parser)]
#[command(name = "litefs", version, about, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; the command's own \
                        for mount and run; 99 the node cannot continue safely.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node: recover, restore to the head, mount, run the commands
    Mount(Mount),
    /// Run a command if this node is the right one for it
    Run(Run),
    /// Show what a node is and where its databases stand
    Status(Status),
    /// Replace (or create) a database by a file
    Import(Import),
    /// Write a database to a file
    Export(Export),
    /// Make a node the primary
    Promote(Remote),
    /// Make a node give the lease to another one
    Handoff(Handoff),
    /// List the databases of the archive, or the restore points of one
    History(History),
    /// Restore databases from the archive into files
    Restore(Restore),
    /// Check the archive: gaps, overlaps, checksums
    Verify(Verify),
    /// Look into change sets and log segments
    #[command(subcommand)]
    Ltx(Ltx),
    /// Branches that lost and are kept, in the data directory and in the archive
    #[command(subcommand)]
    Parked(Parked),
    /// Check configuration files
    #[command(subcommand)]
    Config(Config),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
    /// The node's own: copies one database over another in one transaction
    #[command(hide = true)]
    InternalCopy {
        /// The database
        source: PathBuf,
        /// The one that becomes like it
        target: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Mount {
    /// The configuration; else ./litefs.toml, ~/litefs.toml, /etc/litefs.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Take $ in the configuration as it is
    #[arg(long)]
    pub no_expand_env: bool,
    /// A command to run instead of those of [[exec]]
    #[arg(last = true, value_name = "CMD")]
    pub exec: Vec<String>,
}

/// Which node a command talks to.
#[derive(Debug, Args)]
pub struct Remote {
    /// The node's API; else http.addr of the configuration, else http://127.0.0.1:20202
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// The configuration that has the node's address and token
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    pub config: Option<PathBuf>,
    /// The API's token; else LITEFS_TOKEN, else http.token of the configuration
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
}

#[derive(Debug, Args)]
pub struct Run {
    /// Make this node the primary first
    #[arg(long)]
    pub promote: bool,
    /// Run only if this node is the primary; else exit with 0
    #[arg(long, conflicts_with = "promote")]
    pub if_primary: bool,
    /// Run only if this node may become primary; else exit with 0
    #[arg(long)]
    pub if_candidate: bool,
    /// Let the command write database DB here, though another node is the primary: its
    /// applications wait meanwhile
    #[arg(long, value_name = "DB", conflicts_with_all = ["promote", "if_primary"])]
    pub halt: Option<String>,
    #[command(flatten)]
    pub remote: Remote,
    /// The command
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub remote: Remote,
    /// Print what the API says
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Import {
    /// The database's name: its path below the mount
    #[arg(long, value_name = "DB")]
    pub name: String,
    #[command(flatten)]
    pub remote: Remote,
    /// The SQLite file; no program may be writing it
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct Export {
    /// The database's name: its path below the mount
    #[arg(long, value_name = "DB")]
    pub name: String,
    #[command(flatten)]
    pub remote: Remote,
    /// Replace FILE if it is there, once the new one is whole
    #[arg(long)]
    pub force: bool,
    /// Where to
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct Handoff {
    /// The other node: its id or hostname
    pub node: String,
    #[command(flatten)]
    pub remote: Remote,
}

/// Which archive a command reads.
#[derive(Debug, Args)]
pub struct Place {
    /// The configuration whose [storage] is the archive; else ./litefs.toml, ~/litefs.toml,
    /// /etc/litefs.toml
    #[arg(long, value_name = "FILE", conflicts_with = "storage")]
    pub config: Option<PathBuf>,
    /// The archive: file:///path, s3://bucket/prefix?endpoint=…&region=…
    #[arg(long, value_name = "URL")]
    pub storage: Option<String>,
}

#[derive(Debug, Args)]
pub struct History {
    /// One database; else a list of all
    #[arg(long, value_name = "DB")]
    pub name: Option<String>,
    /// From when on: RFC 3339, or a duration ago (2h)
    #[arg(long, value_name = "T", requires = "name")]
    pub from: Option<String>,
    /// Until when
    #[arg(long, value_name = "T", requires = "name")]
    pub to: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// Read and check every change set, not only that they are there
    #[arg(long)]
    pub deep: bool,
    /// One database; else all
    #[arg(long, value_name = "DB")]
    pub name: Option<String>,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// The database
    #[arg(long, value_name = "DB", required_unless_present = "all", conflicts_with = "all")]
    pub name: Option<String>,
    /// Every database that the archive has
    #[arg(long)]
    pub all: bool,
    /// The file to write; with --all the directory
    #[arg(short, long, value_name = "PATH")]
    pub output: PathBuf,
    /// The state at this time: RFC 3339 (2026-11-21T09:00:00Z), or a duration ago (2h)
    #[arg(long, value_name = "T", conflicts_with = "txid")]
    pub timestamp: Option<String>,
    /// The state after this transaction, hexadecimal as `litefs history` prints it
    #[arg(long, value_name = "TXID", conflicts_with = "all")]
    pub txid: Option<String>,
    /// Replace files that are there, each once the new one is whole
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Subcommand)]
pub enum Ltx {
    /// Print header, pages and trailer of each
    Dump(LtxFiles),
    /// Print a line for each
    List(LtxFiles),
    /// Check everything in each; exit 1 if one is damaged
    Verify(LtxFiles),
    /// Write one again with another compression; by default as Litestream reads it
    Convert {
        /// The file to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// How pages are compressed
        #[arg(long, value_enum, default_value = "lz4")]
        encoding: Encoding,
        /// Checksums where the format has them, which Litestream refuses
        #[arg(long)]
        tracked: bool,
        /// Replace the file if it is there
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        file: LtxFiles,
    },
    /// Apply to a database file, in order
    Apply {
        /// The database file; made if it is not there
        #[arg(long, value_name = "FILE")]
        db: PathBuf,
        #[command(flatten)]
        files: LtxFiles,
    },
}

/// How pages are compressed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Encoding {
    /// What every reader of the format knows
    Lz4,
    /// Smaller; ours alone
    Zstd,
}

#[derive(Debug, Args)]
pub struct LtxFiles {
    /// Of a segment with several databases, only this one
    #[arg(long, value_name = "DB")]
    pub name: Option<String>,
    /// LTX files, log segments or packs: paths, or s3://bucket/key?endpoint=…
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Parked {
    /// List them: those of the data directory, and those of the archive
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Write one to a file, as a database
    Export {
        /// Which, as the list names it
        id: String,
        /// The file to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Replace the file if it is there
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Check a configuration; print what is wrong with it, or that it is good
    Check {
        /// The file; else the one that `litefs mount` would take
        file: Option<PathBuf>,
        /// Take $ as it is
        #[arg(long)]
        no_expand_env: bool,
    },
}
