//! Every key of litefs.toml, its type and its default. Must not judge how keys go
//! together: `check` does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

use crate::exec::Command;

use super::error::Fault;
use super::expand::Environment;
use super::table::{Context, Places, Section};
use super::*;

pub(super) fn read(file: &Path, text: &str, env: Option<Environment<'_>>) -> Result<Config, Fault> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        Fault::new(at, format!("this is not TOML: {}", error.message()))
    })?;
    let places = Places::default();
    let mut top = Section::new("", 0, table.get_ref(), Context { env, places: &places });
    let base = base_of(file);
    let mut config = Config {
        file: file.to_owned(),
        fuse: each(&mut top, "fuse", |section| fuse(section, &base))?,
        data: each(&mut top, "data", |section| data(section, &base))?,
        storage: each(&mut top, "storage", |section| storage(section, &base))?,
        lease: each(&mut top, "lease", lease)?,
        http: each(&mut top, "http", http)?,
        proxy: top.section("proxy")?.map(proxy).transpose()?,
        exec: top.sections("exec")?.into_iter().map(exec).collect::<Result<_, _>>()?,
        log: each(&mut top, "log", log)?,
    };
    top.end()?;
    if let Some(proxy) = &mut config.proxy
        && proxy.advertise_url.is_none()
    {
        proxy.advertise_url = beside(config.lease.advertise_url.as_deref(), proxy.addr.port());
    }
    super::check::check(&config, &places)?;
    super::unbuilt::refuse(&config, &places)?;
    Ok(config)
}

/// The directory that relative paths are relative to.
fn base_of(file: &Path) -> PathBuf {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned())
}

/// Reads a section, or its defaults if there is none.
fn each<'t, T>(
    top: &mut Section<'t>,
    key: &'static str,
    read: impl FnOnce(&mut Section<'t>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let mut section = match top.section(key)? {
        Some(section) => section,
        None => top.empty(key),
    };
    let value = read(&mut section)?;
    section.end()?;
    Ok(value)
}

fn path(base: &Path, text: &str) -> PathBuf {
    // Pushing an absolute path replaces the base; `components` drops `./`.
    base.join(text).components().collect()
}

fn fuse(section: &mut Section<'_>, base: &Path) -> Result<Fuse, Fault> {
    Ok(Fuse {
        dir: path(base, &section.full_text("dir")?.unwrap_or_else(|| "/litefs".to_owned())),
        allow_other: section.yes("allow-other")?.unwrap_or(false),
        passthrough: section
            .word("passthrough", &[("auto", Passthrough::Auto), ("off", Passthrough::Off)])?
            .unwrap_or(Passthrough::Auto),
    })
}

fn data(section: &mut Section<'_>, base: &Path) -> Result<Data, Fault> {
    Ok(Data {
        dir: path(base, &section.full_text("dir")?.unwrap_or_else(|| "/var/lib/litefs".to_owned())),
        retention: section.duration("retention")?.unwrap_or(Duration::from_secs(600)),
        retention_size: section.size("retention-size")?,
    })
}

fn storage(section: &mut Section<'_>, base: &Path) -> Result<Storage, Fault> {
    let Some(url) = section.full_text("url")? else {
        return Err(Fault::new(
            section.at(),
            "storage.url is missing: where the archive is, \"file:///path\" or \"s3://bucket/prefix\"",
        ));
    };
    let url = absolute_url(base, &url).map_err(|why| section.fault("url", format!("storage.url: {why}")))?;
    let level = section.number("zstd-level")?;
    let encoding = match section.word("encoding", &[("zstd", true), ("lz4", false)])?.unwrap_or(true) {
        true => Encoding::Zstd {
            level: level
                .map_or(Ok(1), i32::try_from)
                .ok()
                .filter(|level| (1..=22).contains(level))
                .ok_or_else(|| {
                    section.fault("zstd-level", "storage.zstd-level must be from 1 (fast) to 22 (small)")
                })?,
        },
        false if level.is_some() => {
            return Err(
                section.fault("zstd-level", "storage.zstd-level means nothing with encoding = \"lz4\"")
            );
        }
        false => Encoding::Lz4,
    };
    let day = Duration::from_secs(86_400);
    Ok(Storage {
        url,
        encoding,
        endpoint: section.full_text("endpoint")?,
        region: section.full_text("region")?,
        force_path_style: section.yes("force-path-style")?,
        sync_interval: section.duration("sync-interval")?.unwrap_or(Duration::from_secs(1)),
        backlog: section.size("backlog")?.unwrap_or(1_000_000_000),
        durability: section
            .word("durability", &[("async", Durability::Async), ("archive", Durability::Archive)])?
            .unwrap_or(Durability::Async),
        retention: section.duration("retention")?.unwrap_or(30 * day),
        parked_retention: section.duration("parked-retention")?.unwrap_or(30 * day),
        snapshot_interval: section.duration("snapshot-interval")?.unwrap_or(day),
        hydration: section
            .word("hydration", &[("lazy", Hydration::Lazy), ("full", Hydration::Full)])?
            .unwrap_or(super::unbuilt::HYDRATION),
        on_unreachable: section
            .word(
                "on-unreachable",
                &[("wait", OnUnreachable::Wait), ("serve-stale", OnUnreachable::ServeStale)],
            )?
            .unwrap_or(OnUnreachable::Wait),
        shutdown_timeout: section.duration("shutdown-timeout")?.unwrap_or(Duration::from_secs(30)),
    })
}

/// An archive's URL with a relative path (`file://./…`, `file://../…`) made
/// absolute.
pub(super) fn absolute_url(base: &Path, url: &str) -> Result<String, String> {
    if let Some(rest) = url.strip_prefix("file://") {
        if rest.starts_with('/') {
            return Ok(url.to_owned());
        }
        if rest == "." || rest.starts_with("./") || rest.starts_with("../") {
            return Ok(format!("file://{}", path(base, rest).display()));
        }
        return Err(format!("{url:?} has no path; write file:///absolute/path or file://./relative/path"));
    }
    if url.starts_with("s3://") {
        return Ok(url.to_owned());
    }
    Err(format!("{url:?} is neither file:// nor s3://; S3-compatible services are s3:// with endpoint"))
}

fn lease(section: &mut Section<'_>) -> Result<Lease, Fault> {
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Storage,
        Consul,
        Static,
    }
    let ttl = section.duration("ttl")?.unwrap_or(Duration::from_secs(10));
    let kinds = [("storage", Kind::Storage), ("consul", Kind::Consul), ("static", Kind::Static)];
    let kind = section.word("type", &kinds)?;
    let consul = section.section("consul")?;
    let kind = match (kind, consul) {
        (Some(Kind::Consul), Some(section)) => LeaseKind::Consul(self::consul(section, ttl)?),
        (Some(Kind::Consul), None) => {
            return Err(
                section.fault("type", "lease.type = \"consul\" needs [lease.consul] with url and key")
            );
        }
        (_, Some(other)) => {
            return Err(Fault::new(
                other.at(),
                "[lease.consul] means nothing unless lease.type = \"consul\"",
            ));
        }
        (Some(Kind::Storage) | None, None) => LeaseKind::Storage,
        (Some(Kind::Static), None) => LeaseKind::Static,
    };
    Ok(Lease {
        kind,
        ttl,
        candidate: section.yes("candidate")?.unwrap_or(true),
        promote: section.yes("promote")?.unwrap_or(false),
        hostname: section.full_text("hostname")?.unwrap_or_else(hostname),
        advertise_url: section.full_text("advertise-url")?,
        release_on_idle: section.duration("release-on-idle")?.unwrap_or(Duration::ZERO),
        databases: section.texts("databases")?.unwrap_or_default(),
    })
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn consul(mut section: Section<'_>, ttl: Duration) -> Result<Consul, Fault> {
    let at = section.at();
    let missing = |key: &str| Fault::new(at, format!("lease.consul.{key} is missing"));
    let url = section.full_text("url")?.ok_or_else(|| missing("url"))?;
    let key = section.full_text("key")?.ok_or_else(|| missing("key"))?;
    let place = ConsulPlace::new(&url, &key);
    let consul = Consul {
        place: place.map_err(|why| section.fault("url", format!("lease.consul: {why}")))?,
        ttl: section.duration("ttl")?.unwrap_or(ttl),
        lock_delay: section.duration("lock-delay")?.unwrap_or(Duration::from_secs(1)),
    };
    let day = Duration::from_secs(86_400);
    if !(Duration::from_secs(10)..=day).contains(&consul.ttl) {
        return Err(
            section.fault("ttl", "lease.consul.ttl must be from 10s to 24h: Consul has no other sessions")
        );
    }
    if consul.lock_delay > Duration::from_secs(60) {
        return Err(section
            .fault("lock-delay", "lease.consul.lock-delay must be at most 60s: Consul has no longer one"));
    }
    section.end()?;
    Ok(consul)
}

fn http(section: &mut Section<'_>) -> Result<Http, Fault> {
    Ok(Http {
        addr: section
            .listen_addr("addr")?
            .unwrap_or_else(|| std::net::SocketAddr::from(([127, 0, 0, 1], 20202))),
        token: section.full_text("token")?.map(Secret::from),
    })
}

/// What a token says of a database beside its name, in bytes.
const POSITION: usize = 35;

/// Browsers drop cookies over 4096 bytes, their name and attributes included.
const LONGEST_TOKEN: usize = 3900;

/// The address with another port on the host of a URL.
fn beside(url: Option<&str>, port: u16) -> Option<Address> {
    let url = url::Url::parse(url?).ok()?;
    Address::parse(&format!("{}:{port}", url.host_str()?)).ok()
}

fn proxy(mut section: Section<'_>) -> Result<Proxy, Fault> {
    let at = section.at();
    let missing =
        |key: &str| Fault::new(at, format!("proxy.{key} is missing: [proxy] needs addr, target and db"));
    let databases = match section.is_list("db") {
        true => section.texts("db")?,
        false => section.full_text("db")?.map(|name| vec![name]),
    };
    let databases = databases.ok_or_else(|| missing("db"))?;
    let databases = databases.iter().map(|name| DbName::new(name)).collect::<Result<Vec<_>, _>>();
    let databases = databases.map_err(|error| section.fault("db", format!("proxy.db: {error}")))?;
    let size: usize = databases.iter().map(|db| db.as_str().len() + POSITION).sum();
    if databases.is_empty() || size > LONGEST_TOKEN {
        return Err(section.fault(
            "db",
            "proxy.db must name the databases that requests read and write, at least one, and no more than fit into \
             a cookie (about 60)",
        ));
    }
    let address = |section: &mut Section<'_>, key| match section.full_text(key)? {
        None => Ok(None),
        Some(text) => match Address::parse(&text) {
            Ok(address) => Ok(Some(address)),
            Err(why) => Err(section.fault(key, format!("proxy.{key}: {why}"))),
        },
    };
    let proxy = Proxy {
        addr: section.listen_addr("addr")?.ok_or_else(|| missing("addr"))?,
        advertise_url: address(&mut section, "advertise-url")?,
        target: address(&mut section, "target")?.ok_or_else(|| missing("target"))?,
        databases,
        max_lag: section.duration("max-lag")?.unwrap_or(Duration::from_secs(10)),
        passthrough: section.texts("passthrough")?.unwrap_or_default(),
        always_forward: section.texts("always-forward")?.unwrap_or_default(),
        forward: section
            .word("forward", &[("proxy", Forward::Proxy), ("fly-replay", Forward::FlyReplay)])?
            .unwrap_or(Forward::Proxy),
        wait_timeout: section.duration("wait-timeout")?.unwrap_or(Duration::from_secs(5)),
    };
    section.end()?;
    Ok(proxy)
}

fn exec(mut section: Section<'_>) -> Result<Command, Fault> {
    let made = match section.is_list("cmd") {
        true => section.texts("cmd")?.map(Command::from_words),
        false => section.full_text("cmd")?.map(|line| Command::from_line(&line)),
    };
    let made = made.ok_or_else(|| Fault::new(section.at(), "exec.cmd is missing: the command to run"))?;
    let mut command = made.map_err(|error| section.fault("cmd", format!("exec.cmd: {error}")))?;
    command.if_candidate = section.yes("if-candidate")?.unwrap_or(false);
    command.if_primary = section.yes("if-primary")?.unwrap_or(false);
    section.end()?;
    Ok(command)
}

fn log(section: &mut Section<'_>) -> Result<Log, Fault> {
    let level = section.full_text("level")?.unwrap_or_else(|| "info".to_owned());
    if tracing_subscriber::EnvFilter::try_new(&level).is_err() {
        return Err(section
            .fault("level", format!("log.level: {level:?} is none of error, warn, info, debug, trace")));
    }
    Ok(Log {
        level,
        format: section
            .word("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)])?
            .unwrap_or(LogFormat::Text),
    })
}
