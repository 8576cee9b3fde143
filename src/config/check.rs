//! Which values do not go together, and the remedy. Must not touch the machine.

use std::path::Path;
use std::time::Duration;

use super::error::Fault;
use super::table::Places;
use super::*;

pub(super) fn check(config: &Config, places: &Places) -> Result<(), Fault> {
    directories(config, places)?;
    storage(&config.storage, places)?;
    lease(&config.lease, places)?;
    if !config.http.addr.ip().is_loopback() && config.http.token.is_none() {
        return Err(Fault::new(
            places.of("http.addr"),
            format!(
                "http.addr = \"{}\" is open to the network, and without http.token anyone who reaches it could \
                 read and replace every database; set http.token, or listen on 127.0.0.1",
                config.http.addr
            ),
        ));
    }
    Ok(())
}

fn directories(config: &Config, places: &Places) -> Result<(), Fault> {
    let archive = config.storage.url.strip_prefix("file://").map(Path::new);
    let mount = &config.fuse.dir;
    let within = |inner: &Path, outer: &Path| inner.starts_with(outer);
    if within(&config.data.dir, mount) || within(mount, &config.data.dir) {
        return Err(Fault::new(
            places.of("data.dir"),
            format!(
                "data.dir ({}) and fuse.dir ({}) must not lie within each other",
                config.data.dir.display(),
                mount.display()
            ),
        ));
    }
    if let Some(archive) = archive
        && (within(archive, mount) || within(mount, archive) || within(archive, &config.data.dir))
    {
        return Err(Fault::new(
            places.of("storage.url"),
            format!(
                "the archive ({}) must lie neither in the mount nor in data.dir: it has to outlive both; \
                 choose another directory",
                archive.display()
            ),
        ));
    }
    Ok(())
}

fn storage(storage: &Storage, places: &Places) -> Result<(), Fault> {
    if storage.url.starts_with("file://") {
        for key in ["storage.endpoint", "storage.region", "storage.force-path-style"] {
            if places.has(key) {
                return Err(Fault::new(
                    places.of(key),
                    format!("{key} means nothing with a file:// archive"),
                ));
            }
        }
    }
    if storage.retention < storage.snapshot_interval {
        let key = if places.has("storage.retention") { "retention" } else { "snapshot-interval" };
        return Err(Fault::new(
            places.of(&format!("storage.{key}")),
            format!(
                "storage.retention ({}) is shorter than storage.snapshot-interval ({}): history would begin \
                 before its first snapshot; make retention longer or snapshots more frequent",
                humantime::format_duration(storage.retention),
                humantime::format_duration(storage.snapshot_interval)
            ),
        ));
    }
    at_least("storage.snapshot-interval", storage.snapshot_interval, Duration::from_secs(60), places)?;
    at_least("storage.shutdown-timeout", storage.shutdown_timeout, Duration::from_secs(1), places)
}

fn lease(lease: &Lease, places: &Places) -> Result<(), Fault> {
    at_least("lease.ttl", lease.ttl, Duration::from_secs(1), places)?;
    if lease.promote && !lease.candidate {
        return Err(Fault::new(
            places.of("lease.promote"),
            "lease.promote = true needs lease.candidate = true: this node may not become primary",
        ));
    }
    if !lease.databases.is_empty() && lease.candidate {
        return Err(Fault::new(
            places.of("lease.databases"),
            "lease.databases on a candidate: a node that may become primary must have all of them; set \
             lease.candidate = false",
        ));
    }
    if let Some(url) = &lease.advertise_url {
        let good = url::Url::parse(url).is_ok_and(|url| url.scheme() == "http" && url.host_str().is_some());
        if !good {
            return Err(Fault::new(
                places.of("lease.advertise-url"),
                format!("lease.advertise-url: {url:?} is not like http://host:20202"),
            ));
        }
    }
    Ok(())
}

fn at_least(key: &str, value: Duration, least: Duration, places: &Places) -> Result<(), Fault> {
    if value >= least {
        return Ok(());
    }
    let least = humantime::format_duration(least);
    Err(Fault::new(places.of(key), format!("{key} must be at least {least}")))
}
