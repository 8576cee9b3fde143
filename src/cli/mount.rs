//! `litefs mount`: from the configuration to the node's options, and the log. Must
//! not know how a node runs.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

use crate::config::{self, Config, Durability, Encoding, LeaseKind, LogFormat, OnUnreachable, Passthrough};
use crate::ltx::Codec;
use crate::node::{self, LeaseChoice, NodeError, NodeOptions, Outcome, ProxyChoice};
use crate::proxy::{Forward, ProxyOptions};
use crate::store::LogRetention;
use crate::words::{Faults, SystemClock};
use crate::{archive, exec, fuse};

use super::args::Mount;
use super::error::CliError;
use super::place;

pub fn mount(args: Mount) -> Result<ExitCode, CliError> {
    let mut config = Config::load(&config::find(args.config.as_deref())?, !args.no_expand_env)?;
    if !args.exec.is_empty() {
        config.exec = vec![exec::Command::from_words(args.exec).map_err(CliError::usage)?];
    }
    let options = options(&config)?;
    start_log(&config.log);
    raise_descriptor_limit();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), config = %config.file.display(), archive = %config.storage.url,
        "litefs starts"
    );
    match node::run(options) {
        Ok(Outcome::Exit(code)) => Ok(ExitCode::from(code)),
        Ok(Outcome::Rejoin) => {
            let error = start_over();
            fuse::reopen_mount_point(&config.data.dir);
            Err(CliError::Failed(error))
        }
        Err(error) if config.log.format == LogFormat::Json => {
            tracing::error!(%error, "the node failed");
            Err(CliError::Told(code_of(&error)))
        }
        Err(error) if error.is_unsafe() => Err(CliError::Unsafe(error.into())),
        Err(error) => Err(error.into()),
    }
}

/// Of every database that is in use several files are open at once, and the soft limit
/// is 1024 on most systems. Commands of `[[exec]]` inherit it.
fn raise_descriptor_limit() {
    const WANTED: u64 = 1 << 16;
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(WANTED, |most| most.min(WANTED));
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit });
        if let Err(error) = raised {
            tracing::warn!(%error, "the limit of open files stays as it is: hundreds of databases may be too many");
        }
    }
}

/// Replaces this process by the same program with the same arguments, under the same
/// process id, so that whoever supervises it notices nothing. Returns only on failure.
fn start_over() -> anyhow::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return anyhow::anyhow!("starting over failed: {error}; start the node again"),
    };
    let error = std::process::Command::new(&program).args(std::env::args_os().skip(1)).exec();
    anyhow::anyhow!("starting {} over failed: {error}; start the node again", program.display())
}

fn code_of(error: &NodeError) -> u8 {
    if error.is_unsafe() { 99 } else { 1 }
}

fn options(config: &Config) -> Result<NodeOptions, CliError> {
    let Config { fuse, data, storage, lease, http, .. } = config;
    let clock = Arc::new(SystemClock);
    let faults = std::env::var("LITEFS_FAULTS").unwrap_or_default();
    let faults = Faults::parse(&faults).map_err(|why| CliError::usage(format!("LITEFS_FAULTS: {why}")))?;
    Ok(NodeOptions {
        mount: fuse::MountOptions {
            dir: fuse.dir.clone(),
            allow_other: fuse.allow_other,
            passthrough: match fuse.passthrough {
                Passthrough::Auto => fuse::Passthrough::Auto,
                Passthrough::Off => fuse::Passthrough::Off,
            },
        },
        data: data.dir.clone(),
        log_retention: LogRetention { age: data.retention, size: data.retention_size },
        storage: match lease.kind {
            LeaseKind::Static => place::configured(config)?.open_for_one_writer()?,
            LeaseKind::Storage | LeaseKind::Consul(_) => place::configured(config)?.open()?,
        },
        archive: archive::Options {
            retention: storage.retention,
            parked_retention: storage.parked_retention,
            snapshot_interval: storage.snapshot_interval,
            codec: match storage.encoding {
                Encoding::Zstd { level } => Codec::Zstd { level },
                Encoding::Lz4 => Codec::Lz4,
            },
            clock: clock.clone(),
            faults: faults.clone(),
            ..archive::Options::default()
        },
        sync_interval: storage.sync_interval,
        backlog: Some(storage.backlog),
        durability: match storage.durability {
            Durability::Async => node::Durability::Async,
            Durability::Archive => node::Durability::Archive,
        },
        on_unreachable: match storage.on_unreachable {
            OnUnreachable::Wait => node::OnUnreachable::Wait,
            OnUnreachable::ServeStale => node::OnUnreachable::ServeStale,
        },
        shutdown_timeout: storage.shutdown_timeout,
        lease: match &lease.kind {
            LeaseKind::Storage => LeaseChoice::Storage {
                store: place::configured(config)?.open_for_lease(lease.ttl)?,
                ttl: lease.ttl,
            },
            LeaseKind::Static => LeaseChoice::Static,
            LeaseKind::Consul(consul) => LeaseChoice::Consul {
                place: consul.place.clone(),
                ttl: consul.ttl,
                lock_delay: consul.lock_delay,
            },
        },
        hostname: lease.hostname.clone(),
        advertise_url: lease.advertise_url.clone(),
        proxy: config.proxy.as_ref().map(proxy_choice),
        candidate: lease.candidate,
        promote: lease.promote,
        release_on_idle: lease.release_on_idle,
        http: (http.addr, http.token.as_ref().map(|token| token.reveal().to_owned())),
        exec: config.exec.clone(),
        clock,
        faults,
    })
}

fn proxy_choice(config: &config::Proxy) -> ProxyChoice {
    ProxyChoice {
        options: ProxyOptions {
            passthrough: config.passthrough.clone(),
            always_forward: config.always_forward.clone(),
            forward: match config.forward {
                config::Forward::Proxy => Forward::Proxy,
                config::Forward::FlyReplay => Forward::FlyReplay,
            },
            wait_timeout: config.wait_timeout,
            ..ProxyOptions::new(config.addr, config.target.clone(), config.databases.clone())
        },
        advertise: config.advertise_url.clone(),
        max_lag: config.max_lag,
    }
}

/// The log goes to standard error. A bare level is litefs's own; of its libraries
/// only what is wrong is of interest.
fn start_log(log: &config::Log) {
    let bare = log.level.bytes().all(|byte| byte.is_ascii_alphabetic());
    let quiet = matches!(log.level.as_str(), "error" | "off");
    let filter = match bare && !quiet {
        true => EnvFilter::new(format!("warn,litefs={}", log.level)),
        false => EnvFilter::new(&log.level),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // It fails only if there is one already: once a process, this is the only place.
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
