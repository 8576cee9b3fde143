//! Whole files: what is read, what is refused, with which words on which line.

use super::*;

const SMALL: &str = "[storage]\nurl = \"file:///archive\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    let env = |name: &str| match name {
        "REGION" => Some("ams".to_owned()),
        "TOKEN" => Some("s3cret".to_owned()),
        "LEVEL" => Some("7".to_owned()),
        _ => None,
    };
    Config::parse(Path::new("/etc/app/litefs.toml"), text, Some(&env))
}

fn refused(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn a_file_with_an_archive_only_has_the_documented_defaults() {
    let config = parse(SMALL).expect("config");
    assert_eq!(config.fuse.dir, Path::new("/litefs"));
    assert_eq!(config.data.dir, Path::new("/var/lib/litefs"));
    assert_eq!(config.data.retention, Duration::from_secs(600));
    assert_eq!(config.storage.sync_interval, Duration::from_secs(1));
    assert_eq!(config.storage.retention, Duration::from_secs(30 * 86_400));
    assert_eq!(config.storage.shutdown_timeout, Duration::from_secs(30));
    assert_eq!(config.http.addr.to_string(), "127.0.0.1:20202");
    assert!(config.lease.candidate && !config.lease.promote && config.exec.is_empty());
    assert!(!config.lease.hostname.is_empty());
}

#[test]
fn every_key_reads() {
    let config = parse(
        r#"
        fuse = { dir = "/mnt", allow-other = true, passthrough = "off" }
        data = { dir = "/data", retention = "1h", retention-size = "64MB" }
        [storage]
        url = "s3://bucket/${REGION}"
        endpoint = "http://127.0.0.1:9000"
        region = "${REGION}"
        force-path-style = true
        sync-interval = "100ms"
        durability = "async"
        encoding = "zstd"
        zstd-level = "${LEVEL}"
        retention = "7d"
        snapshot-interval = "1h"
        hydration = "full"
        on-unreachable = "wait"
        shutdown-timeout = "5s"
        [lease]
        type = "static"
        candidate = "${REGION == 'ams'}"
        promote = false
        ttl = "5s"
        hostname = "a"
        advertise-url = "http://a:20202"
        release-on-idle = "0s"
        databases = []
        [http]
        addr = ":20202"
        token = "${TOKEN}"
        [[exec]]
        cmd = "migrate 'a b'"
        if-primary = true
        [[exec]]
        cmd = ["app", "a b"]
        if-candidate = true
        [log]
        format = "json"
        level = "debug"
        "#,
    )
    .expect("config");
    assert_eq!(config.storage.url, "s3://bucket/ams");
    assert_eq!(config.storage.encoding, Encoding::Zstd { level: 7 });
    assert_eq!(config.data.retention_size, Some(64_000_000));
    assert_eq!(config.http.token.as_ref().map(Secret::reveal), Some("s3cret"));
    assert_eq!(config.exec[0].arguments(), ["a b"]);
    assert!(config.exec[0].if_primary && config.exec[1].if_candidate && config.lease.candidate);
    assert_eq!(config.log.format, LogFormat::Json);
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let config = parse(
        "[fuse]\ndir = \"./run/mnt\"\n[data]\ndir = \"run/data\"\n[storage]\nurl = \"file://./run/archive\"\n",
    )
    .expect("config");
    assert_eq!(config.fuse.dir, Path::new("/etc/app/run/mnt"));
    assert_eq!(config.data.dir, Path::new("/etc/app/run/data"));
    assert_eq!(config.storage.url, "file:///etc/app/run/archive");
}

#[test]
fn unknown_keys_are_named_with_line_and_nearest_name() {
    let said = refused(&format!("{SMALL}sync_interval = \"1s\"\n"));
    assert_eq!(
        said,
        "/etc/app/litefs.toml:3: unknown key storage.sync_interval; did you mean storage.sync-interval?"
    );
    let said = refused(&format!("{SMALL}\n[fsue]\ndir = \"/x\"\n"));
    assert_eq!(said, "/etc/app/litefs.toml:4: unknown section or key fsue; did you mean fuse?");
    let said = refused(&format!("{SMALL}\n[[exec]]\ncmd = \"a\"\nwhen = 1\n"));
    assert!(said.starts_with("/etc/app/litefs.toml:6: unknown key exec.when"), "{said}");
}

#[test]
fn values_of_the_wrong_kind_are_named_with_line_and_remedy() {
    for (text, line, words) in [
        ("[storage]\n", 1, "storage.url is missing"),
        ("", 1, "storage.url is missing"),
        ("[storage]\nurl = 5\n", 2, "storage.url must be a text"),
        ("[storage]\nurl = \"http://x\"\n", 2, "neither file:// nor s3://"),
        ("[storage]\nurl = \"file://run/x\"\n", 2, "file://./relative/path"),
        ("[storage]\nurl = \"s3://${BUCKET}/x\"\n", 2, "BUCKET is not set"),
        ("[storage]\nurl = \"file:///a\"\nsync-interval = \"fast\"\n", 3, "is not a duration"),
        ("[storage]\nurl = \"file:///a\"\nsync-interval = 5\n", 3, "must be a text"),
        ("[storage]\nurl = \"file:///a\"\nencoding = \"gzip\"\n", 3, "\"zstd\", \"lz4\""),
        ("[storage]\nurl = \"file:///a\"\nzstd-level = 99\n", 3, "from 1 (fast) to 22"),
        ("[storage]\nurl = \"file:///a\"\nzstd-level = -1\n", 3, "must not be negative"),
        ("[storage]\nurl = \"file:///a\"\nencoding = \"lz4\"\nzstd-level = 3\n", 4, "means nothing"),
        ("[storage]\nurl = \"file:///a\"\nretention = \"1h\"\n", 3, "shorter than storage.snapshot-interval"),
        ("[storage]\nurl = \"file:///a\"\nregion = \"x\"\n", 3, "means nothing with a file:// archive"),
        ("[storage]\nurl = \"file:///a\"\n[http]\naddr = \":1\"\n", 4, "set http.token"),
        ("[storage]\nurl = \"file:///a\"\n[http]\ntoken = \"\"\n", 4, "is empty"),
        ("[storage]\nurl = \"file:///a\"\n[fuse]\nallow-other = \"yes\"\n", 4, "true or false"),
        ("[storage]\nurl = \"file:///litefs/x\"\n", 2, "neither in the mount"),
        ("[storage]\nurl = \"file:///a\"\n[data]\ndir = \"/litefs/data\"\n", 4, "within each other"),
        ("[storage]\nurl = \"file:///a\"\n[lease]\npromote = true\ncandidate = false\n", 4, "candidate"),
        ("[storage]\nurl = \"file:///a\"\n[lease.consul]\nurl = \"x\"\n", 3, "unless lease.type"),
        ("[storage]\nurl = \"file:///a\"\n[[exec]]\ncmd = \"a && b\"\n", 4, "sh"),
        ("[storage]\nurl = \"file:///a\"\n[exec]\ncmd = \"a\"\n", 3, "[[exec]]"),
        ("[storage]\nurl = \"file:///a\"\n[log]\nlevel = \"a=b=c\"\n", 4, "error, warn"),
        ("[storage]\nurl = \"file:///a\n", 2, "this is not TOML"),
        ("[storage]\nurl = \"file:///a\"\nurl = \"file:///b\"\n", 3, "this is not TOML"),
    ] {
        let said = refused(text);
        assert!(said.starts_with(&format!("/etc/app/litefs.toml:{line}: ")), "{text}\n{said}");
        assert!(said.contains(words), "{text}\n{said}");
    }
}

#[test]
fn a_proxy_has_the_documented_defaults_and_refuses_what_it_cannot_work_with() {
    let proxy = "[proxy]\naddr = \":80\"\ntarget = \"localhost:81\"\ndb = \"a.db\"\n";
    let parse = |more: &str| parse(&format!("{SMALL}{proxy}{more}")).map(|config| config.proxy);
    let config = parse("").expect("a proxy").expect("a proxy");
    assert_eq!(config.target.as_str(), "localhost:81");
    assert_eq!(config.databases, [DbName::new("a.db").expect("a name")]);
    assert_eq!(config.forward, Forward::Proxy);
    assert_eq!((config.max_lag, config.wait_timeout), (Duration::from_secs(10), Duration::from_secs(5)));
    assert_eq!(config.advertise_url, None);
    let advertise = |more| parse(more).expect("a proxy").expect("a proxy").advertise_url;
    let lease = "[lease]\nadvertise-url = \"http://node-a:20202\"\n";
    assert_eq!(advertise(lease).expect("beside the API").as_str(), "node-a:80");
    let own = format!("advertise-url = \"http://10.0.0.1:8080\"\n{lease}");
    assert_eq!(advertise(&own).expect("its own").as_str(), "10.0.0.1:8080");
    for (text, line, words) in [
        ("[proxy]\naddr = \":80\"\ndb = \"a\"\n", 3, "proxy.target is missing"),
        ("[proxy]\naddr = \":80\"\ntarget = \"x\"\ndb = \"a\"\n", 5, "localhost:8080"),
        ("[proxy]\naddr = \":80\"\ntarget = \":81\"\ndb = \"../a\"\n", 6, "not a database name"),
        ("[proxy]\naddr = \":80\"\ntarget = \":81\"\ndb = []\n", 6, "at least one"),
    ] {
        let said = refused(&format!("{SMALL}{text}"));
        assert!(said.starts_with(&format!("/etc/app/litefs.toml:{line}: ")), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_lease_in_consul_keeps_its_token_to_itself_and_consuls_limits() {
    let consul = "[lease]\ntype = \"consul\"\n[lease.consul]\nurl = \"http://:s3cret@c/apps\"\nkey = \"k\"\n";
    let config = parse(&format!("{SMALL}{consul}")).expect("a lease");
    let LeaseKind::Consul(lease) = &config.lease.kind else { panic!("{:?}", config.lease) };
    assert_eq!((lease.ttl, lease.lock_delay), (Duration::from_secs(10), Duration::from_secs(1)));
    assert!(!format!("{config:?}").contains("s3cret"));
    for (more, line, words) in
        [("ttl = \"5s\"\n", 8, "from 10s to 24h"), ("lock-delay = \"2m\"\n", 8, "at most 60s")]
    {
        let said = refused(&format!("{SMALL}{consul}{more}"));
        assert!(said.starts_with(&format!("/etc/app/litefs.toml:{line}: ")), "{said}");
        assert!(said.contains(words), "{said}");
    }
    assert!(
        refused(&format!("{SMALL}{}", consul.replace("http://:s3cret@c/apps", "c:8500")))
            .contains("must look like")
    );
}

#[test]
fn what_is_not_built_is_refused_and_not_ignored() {
    let said = refused(&format!("{SMALL}hydration = \"lazy\"\n"));
    assert!(said.starts_with("/etc/app/litefs.toml:3: "), "{said}");
    assert!(said.contains("not built into this version"), "{said}");
}

#[test]
fn without_expansion_a_dollar_is_a_dollar() {
    let text = "[storage]\nurl = \"file:///a$b\"\n";
    let config = Config::parse(Path::new("litefs.toml"), text, None).expect("config");
    assert_eq!(config.storage.url, "file:///a$b");
    assert!(refused(text).contains("lone $"));
}

#[test]
fn the_repositorys_own_file_is_good_as_it_stands() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("litefs.toml");
    let config = Config::load(&file, true).expect("litefs.toml");
    assert!(config.fuse.dir.ends_with("run/mnt"));
    assert!(config.storage.url.starts_with("file:///"));
}
