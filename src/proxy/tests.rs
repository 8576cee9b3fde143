//! The proxy over real sockets, with a node and an application that are none.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::testing::*;
use super::view::{Primary, Role};
use super::{Forward, ProxyOptions, start};

const SHORT: Duration = Duration::from_millis(100);

/// A proxy that loses its patience soon.
fn impatient(node: &Arc<Fake>, app: &App) -> super::Proxy {
    let options = ProxyOptions { wait_timeout: SHORT, ..options(app.addr) };
    start(options, Arc::clone(node) as _).expect("a proxy")
}

#[test]
fn a_request_and_its_reply_pass_without_what_is_of_one_connection() {
    let app = App::start("app");
    let proxy = proxy(&Fake::primary(), &app);
    let headers = "Connection: x-mine\r\nX-Mine: 1\r\nX-Yours: 2\r\nTE: trailers\r\n";
    let answer = ask(&proxy, "GET /path?a=b%20c", headers);
    assert_eq!(answer.status, 200);
    assert!(answer.body.starts_with("app\nget /path?a=b%20c http/1.1\r\n"), "{}", answer.body);
    for (name, value) in [
        ("host", Some("app.example")),
        ("x-yours", Some("2")),
        ("x-mine", None),
        ("connection", None),
        ("te", Some("trailers")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("app.example")),
    ] {
        assert_eq!(field(&answer.body, name).as_deref(), value, "{name} in {}", answer.body);
    }
    assert_eq!(answer.field("x-app").as_deref(), Some("yes"));
    for name in ["keep-alive", "connection", "x-private", "set-cookie", "litefs-txid"] {
        assert_eq!(answer.field(name), None, "{name}");
    }
    let answer = ask(&proxy, "GET /chunked", "");
    assert!(answer.body.starts_with("app\nget /chunked"), "{answer:?}");
    let mut browser = Browser::open(proxy.addr());
    browser.send("HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n");
    let answer = browser.head();
    assert!(answer.status == 200 && answer.field("content-length").is_some_and(|length| length != "0"));
    // The connection goes on after it; an absolute address is made relative.
    let answer = browser.ask("GET http://app.example/absolute?q", "");
    assert!(answer.body.starts_with("app\nget /absolute?q http/1.1"), "{answer:?}");
    browser.send("GET /old HTTP/1.0\r\n\r\n");
    let answer = browser.answer();
    assert!(answer.head.starts_with("http/1.0 200"), "{answer:?}");
    assert_eq!(field(&answer.body, "host"), Some(app.addr.to_string()));
}

#[test]
fn connections_to_the_application_are_used_again() {
    let app = App::start("app");
    let proxy = proxy(&Fake::primary(), &app);
    let mut browser = Browser::open(proxy.addr());
    for n in 0..20 {
        assert_eq!(browser.ask(&format!("GET /{n}"), "").status, 200);
    }
    assert_eq!(app.seen.connections.load(Ordering::Acquire), 1);
}

#[test]
fn a_read_is_repeated_when_the_application_had_closed_its_idle_connection() {
    let app = App::start("app");
    let proxy = proxy(&Fake::primary(), &app);
    let mut browser = Browser::open(proxy.addr());
    for _ in 0..50 {
        assert_eq!(browser.ask("GET /closes", "").status, 200);
    }
    assert_eq!(app.seen.connections.load(Ordering::Acquire), 50);
}

#[test]
fn an_application_that_is_not_up_yet_is_waited_for() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let addr = listener.local_addr().expect("an address");
    drop(listener);
    let proxy = start(options(addr), Fake::primary()).expect("a proxy");
    let asking = asking(&proxy, "POST /", "Content-Length: 0\r\n");
    let listener = wait_for("the port", || TcpListener::bind(addr).ok());
    let _app = App::on(listener, "late");
    assert!(asking.join().expect("no panic").body.starts_with("late\npost /"));
}

#[test]
fn an_application_that_does_not_come_up_is_a_bad_gateway() {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let options = ProxyOptions { wait_timeout: SHORT, ..options(nobody) };
    let proxy = start(options, Fake::primary()).expect("a proxy");
    let answer = ask(&proxy, "GET /", "");
    assert_eq!(answer.status, 502);
    assert!(answer.body.contains("127.0.0.1:1 cannot be reached"), "{answer:?}");
}

#[test]
fn a_write_on_the_primary_gives_a_token_that_includes_it() {
    let app = App::start("app");
    let node = Fake::primary();
    node.set_pos("app.db", pos(41, 1));
    node.uncaptured.store(true, Ordering::Release);
    let proxy = proxy(&node, &app);
    let answer = ask(&proxy, "POST /x", "Content-Length: 5\r\n\r\nhello");
    assert!(answer.body.ends_with("hello"), "{answer:?}");
    assert_eq!(answer.field("litefs-txid"), Some(token(42, 1)));
    let cookie = format!("__txid={}; path=/; max-age=300; httponly", token(42, 1));
    assert_eq!(answer.field("set-cookie"), Some(cookie));
}

#[test]
fn a_read_that_is_always_forwarded_gives_a_token_and_what_passes_through_does_not() {
    let app = App::start("app");
    let node = Fake::primary();
    let options = ProxyOptions {
        always_forward: vec!["/login*".to_owned()],
        passthrough: vec!["/static/*".to_owned()],
        ..options(app.addr)
    };
    let proxy = start(options, node).expect("a proxy");
    assert!(ask(&proxy, "GET /login?x", "").field("litefs-txid").is_some());
    assert!(ask(&proxy, "POST /static/x", "Content-Length: 0\r\n").field("litefs-txid").is_none());
}

#[test]
fn a_read_waits_until_its_database_is_where_its_client_has_seen_it() {
    let app = App::start("app");
    let node = Fake::replica(app.addr);
    node.set_pos("app.db", pos(4, 1));
    let proxy = proxy(&node, &app);
    for header in [format!("Litefs-Txid: {}\r\n", token(6, 1)), format!("Cookie: __txid={}\r\n", token(6, 1))]
    {
        node.set_pos("app.db", pos(4, 1));
        let asking = asking(&proxy, "GET /", &header);
        node.wait_waited_for();
        // Not far enough; the same number on another branch; then the one.
        node.set_pos("app.db", pos(5, 1));
        node.set_pos("app.db", pos(6, 2));
        assert!(!asking.is_finished());
        node.set_pos("app.db", pos(6, 1));
        let answer = asking.join().expect("no panic");
        assert!(answer.status == 200 && answer.field("litefs-txid").is_none(), "{answer:?}");
    }
    // A read without a token, or with an earlier one, or of LiteFS, goes at once.
    for header in ["", "Litefs-Txid: 0000000000000006\r\n", "Cookie: __txid=nonsense\r\n"] {
        assert_eq!(ask(&proxy, "GET /", header).status, 200);
    }
}

#[test]
fn a_read_that_waits_in_vain_is_told_why() {
    let app = App::start("app");
    let node =
        Fake::new(Role::Replica { primary: Some(Primary { hostname: "first".to_owned(), proxy: None }) });
    node.set_pos("app.db", pos(4, 1));
    let proxy = impatient(&node, &app);
    let answer = ask(&proxy, "GET /", &format!("Litefs-Txid: {}\r\n", token(6, 1)));
    assert_eq!(answer.status, 504);
    for word in ["app.db", &token(4, 1), "transaction 0000000000000006", "the primary is first"] {
        assert!(answer.body.contains(word), "{word} in {}", answer.body);
    }
}

#[test]
fn every_tracked_database_is_waited_for() {
    let app = App::start("app");
    let node = Fake::primary();
    node.set_pos("a.db", pos(1, 1));
    node.set_pos("b.db", pos(2, 1));
    let options = ProxyOptions { databases: vec![db("a.db"), db("b.db")], ..options(app.addr) };
    let first = start(options.clone(), Arc::clone(&node) as _).expect("a proxy");
    let text = ask(&first, "POST /", "Content-Length: 0\r\n").field("litefs-txid").expect("a token");
    let replica = Fake::replica(first.addr());
    let second = start(options, Arc::clone(&replica) as _).expect("a proxy");
    let asking = asking(&second, "GET /", &format!("Litefs-Txid: {text}\r\n"));
    replica.wait_waited_for();
    replica.set_pos("b.db", pos(2, 1));
    assert!(!asking.is_finished());
    replica.set_pos("a.db", pos(1, 1));
    assert_eq!(asking.join().expect("no panic").status, 200);
}

#[test]
fn nobody_is_ahead_of_the_primary() {
    let app = App::start("app");
    let node = Fake::primary();
    node.set_pos("app.db", pos(4, 1));
    let proxy = proxy(&node, &app);
    for seen in [token(99, 1), token(4, 2)] {
        let answer = ask(&proxy, "GET /", &format!("Litefs-Txid: {seen}\r\n"));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.field("litefs-txid"), Some(token(4, 1)), "the client forgets what is gone");
    }
    let answer = ask(&proxy, "GET /", &format!("Litefs-Txid: {}\r\n", token(4, 1)));
    assert_eq!(answer.field("litefs-txid"), None);
}

#[test]
fn a_client_of_a_branch_that_lost_is_not_locked_out_of_replicas() {
    let app = App::start("app");
    let (node, replica) = (Fake::primary(), Fake::alone());
    node.set_pos("app.db", pos(4, 1));
    let first = proxy(&node, &app);
    replica.set_role(Role::Replica {
        primary: Some(Primary { hostname: "first".to_owned(), proxy: Some(address(first.addr())) }),
    });
    replica.set_pos("app.db", pos(3, 1));
    let second = proxy(&replica, &app);
    for seen in [token(99, 2), token(4, 2)] {
        let answer = ask(&second, "GET /", &format!("Litefs-Txid: {seen}\r\n"));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.field("litefs-txid"), Some(token(3, 1)));
    }
    // What the primary has, or may have had, is waited for.
    let asking = asking(&second, "GET /", &format!("Litefs-Txid: {}\r\n", token(4, 1)));
    replica.wait_waited_for();
    replica.set_pos("app.db", pos(4, 1));
    assert_eq!(asking.join().expect("no panic").field("litefs-txid"), None);
}

#[test]
fn a_write_on_a_replica_is_answered_by_the_primary() {
    let (app, other) = (App::start("first"), App::start("second"));
    let node = Fake::primary();
    node.set_pos("app.db", pos(7, 1));
    let first = proxy(&node, &app);
    let second = proxy(&Fake::replica(first.addr()), &other);
    let answer = ask(&second, "POST /x", "Content-Length: 5\r\n\r\nhello");
    assert!(answer.body.starts_with("first\npost /x") && answer.body.ends_with("hello"), "{answer:?}");
    assert_eq!(answer.field("litefs-txid"), Some(token(7, 1)));
    assert_eq!(field(&answer.body, "x-forwarded-for").as_deref(), Some("127.0.0.1, 127.0.0.1"));
    assert_eq!(field(&answer.body, "host").as_deref(), Some("app.example"));
    // Reads stay.
    assert!(ask(&second, "GET /x", "").body.starts_with("second\n"));
    let chunked = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n";
    assert!(ask(&second, "PUT /x", chunked).body.ends_with("hello"));
}

#[test]
fn a_write_without_a_primary_waits_for_one() {
    let (app, other) = (App::start("first"), App::start("second"));
    let first = proxy(&Fake::primary(), &app);
    let node = Fake::alone();
    let second = proxy(&node, &other);
    let waiting = asking(&second, "POST /", "Content-Length: 0\r\n");
    node.wait_waited_for();
    wait_for("it is wanted", || (node.wanted.load(Ordering::Acquire) > 0).then_some(()));
    node.set_role(Role::Replica {
        primary: Some(Primary { hostname: "first".to_owned(), proxy: Some(address(first.addr())) }),
    });
    assert!(waiting.join().expect("no panic").body.starts_with("first\n"));
    // Or for this node to become it.
    let node = Fake::alone();
    node.promotes.store(true, Ordering::Release);
    let third = proxy(&node, &other);
    assert!(ask(&third, "POST /", "Content-Length: 0\r\n").body.starts_with("second\n"));
}

#[test]
fn a_read_ahead_of_a_node_without_a_primary_asks_for_one() {
    let app = App::start("app");
    let node = Fake::alone();
    node.promotes.store(true, Ordering::Release);
    let proxy = proxy(&node, &app);
    let answer = ask(&proxy, "GET /", &format!("Litefs-Txid: {}\r\n", token(9, 1)));
    assert_eq!(answer.status, 200);
}

#[test]
fn a_write_that_finds_no_primary_is_told_so() {
    let app = App::start("app");
    let proxy = impatient(&Fake::alone(), &app);
    let answer = ask(&proxy, "POST /", "Content-Length: 0\r\n");
    assert_eq!((answer.status, answer.field("retry-after").as_deref()), (503, Some("1")));
    assert!(answer.body.contains("no node is the primary"), "{answer:?}");
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let proxy = impatient(&Fake::replica(nobody), &app);
    let answer = ask(&proxy, "POST /", "Content-Length: 0\r\n");
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("the primary first") && answer.body.contains("cannot be reached"),
        "{answer:?}"
    );
    let primary = Some(Primary { hostname: "first".to_owned(), proxy: None });
    let proxy = impatient(&Fake::new(Role::Replica { primary }), &app);
    let answer = ask(&proxy, "POST /", "Content-Length: 0\r\n");
    assert!(answer.status == 503 && answer.body.contains("proxy.advertise-url"), "{answer:?}");
}

#[test]
fn a_write_does_not_go_round_for_ever() {
    let app = App::start("app");
    let (one, two) = (Fake::alone(), Fake::alone());
    let (first, second) = (impatient(&one, &app), impatient(&two, &app));
    for (node, other, name) in [(&one, &second, "second"), (&two, &first, "first")] {
        node.set_role(Role::Replica {
            primary: Some(Primary { hostname: name.to_owned(), proxy: Some(address(other.addr())) }),
        });
    }
    let answer = ask(&first, "POST /", "Content-Length: 0\r\n");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("it takes second for it"), "{answer:?}");
    // Once one of them is the primary after all, it is done there.
    let patient = proxy(&one, &app);
    two.set_role(Role::Replica {
        primary: Some(Primary { hostname: "first".to_owned(), proxy: Some(address(patient.addr())) }),
    });
    let waiting = asking(&patient, "POST /", "Content-Length: 0\r\n");
    one.wait_waited_for();
    one.set_role(Role::Primary);
    assert_eq!(waiting.join().expect("no panic").status, 200);
}

#[test]
fn a_write_that_came_back_goes_on_to_who_became_the_primary_meanwhile() {
    let (app, other) = (App::start("first"), App::start("second"));
    let (one, two) = (Fake::alone(), Fake::primary());
    let (first, second) = (proxy(&one, &app), proxy(&two, &other));
    // This node has passed it on to one that passed it back, and is no primary any more.
    let waiting = asking(&first, "POST /", "Content-Length: 0\r\nLitefs-Hops: 2\r\n");
    one.wait_waited_for();
    one.set_role(Role::Replica {
        primary: Some(Primary { hostname: "second".to_owned(), proxy: Some(address(second.addr())) }),
    });
    assert!(waiting.join().expect("no panic").body.starts_with("second\n"));
}

#[test]
fn the_router_of_fly_repeats_a_write_where_the_primary_is() {
    let app = App::start("app");
    let node = Fake::replica(app.addr);
    let options = ProxyOptions { forward: Forward::FlyReplay, ..options(app.addr) };
    let proxy = start(options, Arc::clone(&node) as _).expect("a proxy");
    let answer = ask(&proxy, "POST /", "Content-Length: 0\r\n");
    assert_eq!((answer.status, answer.field("fly-replay").as_deref()), (200, Some("instance=first")));
    assert!(ask(&proxy, "GET /", "").body.starts_with("app\n"));
    node.set_role(Role::Primary);
    assert!(ask(&proxy, "POST /", "Content-Length: 0\r\n").body.starts_with("app\n"));
}

/// Changes the protocol, then checks that bytes come back.
fn upgrade(addr: SocketAddr, path: &str) -> Browser {
    let mut browser = Browser::open(addr);
    browser.send(&format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\n"
    ));
    let answer = browser.head();
    assert_eq!(answer.status, 101);
    assert_eq!(answer.field("upgrade").as_deref(), Some("echo"));
    for word in ["hello", "again"] {
        browser.send(word);
        let mut echo = [0; 5];
        browser.stream().read_exact(&mut echo).expect("an echo");
        assert_eq!(String::from_utf8_lossy(&echo), word.to_uppercase());
    }
    browser
}

#[test]
fn connections_that_change_their_protocol_pass_here_and_through_the_primary() {
    let (app, other) = (App::start("first"), App::start("second"));
    let first = proxy(&Fake::primary(), &app);
    drop(upgrade(first.addr(), "/upgrade"));
    wait_for("the application sees the end", || (app.seen.gone.load(Ordering::Acquire) == 1).then_some(()));
    let options = ProxyOptions { always_forward: vec!["*".to_owned()], ..options(other.addr) };
    let second = start(options, Fake::replica(first.addr())).expect("a proxy");
    let kept = upgrade(second.addr(), "/upgrade");
    // A proxy that stops does not wait for them.
    let begin = Instant::now();
    second.stop(PATIENCE);
    assert!(begin.elapsed() < PATIENCE);
    wait_for("the application sees the end", || (app.seen.gone.load(Ordering::Acquire) == 2).then_some(()));
    drop(kept);
}

#[test]
fn a_client_that_goes_away_takes_its_request_along() {
    let app = App::start("app");
    let first = proxy(&Fake::primary(), &app);
    let second = proxy(&Fake::replica(first.addr()), &app);
    for (n, (proxy, line)) in [(&first, "GET /hangs"), (&second, "POST /hangs")].into_iter().enumerate() {
        let mut browser = Browser::open(proxy.addr());
        browser.send(&format!("{line} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"));
        let waits = || (app.seen.waiting.load(Ordering::Acquire) > n).then_some(());
        wait_for("the application works", waits);
        drop(browser);
        let gone = || (app.seen.gone.load(Ordering::Acquire) > n).then_some(());
        wait_for("the application sees it", gone);
    }
}

#[test]
fn a_body_that_nobody_takes_is_not_collected() {
    let app = App::start("app");
    let first = proxy(&Fake::primary(), &app);
    let second = proxy(&Fake::replica(first.addr()), &app);
    let mut browser = Browser::open(second.addr());
    let size = 1usize << 30;
    browser.send(&format!("POST /stalled HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n"));
    // It takes what fits into the kernel's buffers, and then no more.
    let block = vec![7; 1 << 20];
    browser.stream().set_write_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let mut sent = 0;
    let stopped = loop {
        match browser.stream().write(&block) {
            Ok(count) => sent += count,
            Err(error) => break error.kind(),
        }
        assert!(sent < 256 << 20, "{sent} bytes are somewhere in between");
    };
    assert_eq!(stopped, ErrorKind::WouldBlock);
    app.seen.go.store(true, Ordering::Release);
    browser.stream().set_write_timeout(Some(PATIENCE)).expect("a timeout");
    while sent < size {
        sent += browser.stream().write(&block[..block.len().min(size - sent)]).expect("send the rest");
    }
    assert_eq!(browser.answer().status, 200);
    assert_eq!(app.seen.bytes.load(Ordering::Acquire), size);
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let app = App::start("app");
    let proxy =
        start(ProxyOptions { connections: 2, ..options(app.addr) }, Fake::primary()).expect("a proxy");
    let mut kept: Vec<Browser> = (0..2).map(|_| Browser::open(proxy.addr())).collect();
    kept.iter_mut().for_each(|browser| assert_eq!(browser.ask("GET /", "").status, 200));
    let third = asking(&proxy, "GET /waits", "");
    (0..20).for_each(|_| assert_eq!(kept[0].ask("GET /", "").status, 200));
    assert_eq!(app.seen.waiting.load(Ordering::Acquire), 0, "it is not served beside them");
    kept.pop();
    wait_for("its turn comes", || (app.seen.waiting.load(Ordering::Acquire) == 1).then_some(()));
    app.seen.go.store(true, Ordering::Release);
    assert_eq!(third.join().expect("no panic").status, 200);
}

#[test]
fn headers_beyond_measure_are_refused_and_have_no_effect() {
    let app = App::start("app");
    let proxy = proxy(&Fake::primary(), &app);
    for headers in [format!("X-Long: {}\r\n", "a".repeat(1 << 17)), "X-Many: 1\r\n".repeat(1000)] {
        let mut browser = Browser::open(proxy.addr());
        // It may be refused before all of it is sent.
        let request = format!("POST / HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        let _ = browser.stream().write_all(request.as_bytes());
        assert_eq!(browser.head().status, 431);
    }
    let mut browser = Browser::open(proxy.addr());
    browser.send("nonsense\r\n\r\n");
    assert_eq!(browser.head().status, 400);
    assert_eq!(ask(&proxy, "CONNECT a:1", "").status, 405);
    assert_eq!(app.seen.connections.load(Ordering::Acquire), 0);
}

#[test]
fn health_and_position_are_the_proxys_own() {
    let app = App::start("app");
    let node = Fake::primary();
    node.set_pos("app.db", pos(3, 1));
    let proxy = proxy(&node, &app);
    let answer = ask(&proxy, "GET /litefs/health", "");
    assert_eq!((answer.status, answer.body.as_str()), (200, "OK\n"));
    assert_eq!(ask(&proxy, "GET /litefs/position", "").body.trim(), token(3, 1));
    node.set_role(Role::Replica { primary: None });
    assert_eq!(ask(&proxy, "GET /litefs/position", "").status, 503);
    node.set_unhealthy("it lags 11s behind");
    let answer = ask(&proxy, "GET /litefs/health", "");
    assert!(answer.status == 503 && answer.body.contains("it lags 11s behind"), "{answer:?}");
    assert_eq!(app.seen.connections.load(Ordering::Acquire), 0);
}

#[test]
fn a_stop_lets_requests_under_way_finish() {
    let app = App::start("app");
    let proxy = proxy(&Fake::primary(), &app);
    let (addr, asking) = (proxy.addr(), asking(&proxy, "GET /waits", ""));
    wait_for("the application works", || (app.seen.waiting.load(Ordering::Acquire) == 1).then_some(()));
    let stopping = std::thread::spawn(move || proxy.stop(PATIENCE));
    wait_for("nobody is accepted", || std::net::TcpStream::connect(addr).is_err().then_some(()));
    app.seen.go.store(true, Ordering::Release);
    assert_eq!(asking.join().expect("no panic").status, 200);
    stopping.join().expect("no panic");
}

#[test]
fn before_the_lease_goes_a_write_under_way_is_answered_and_the_next_goes_to_the_new_primary() {
    let (app, other) = (App::start("first"), App::start("second"));
    let node = Fake::primary();
    let (first, second) = (proxy(&node, &app), proxy(&Fake::primary(), &other));
    let under_way = asking(&first, "POST /waits", "Content-Length: 0\r\n");
    wait_for("the application works", || (app.seen.waiting.load(Ordering::Acquire) == 1).then_some(()));
    // It is not waited for for ever.
    let held = first.hold_writes(Duration::ZERO);
    let next = asking(&first, "POST /", "Content-Length: 0\r\n");
    node.wait_waited_for();
    assert!(ask(&first, "GET /", "").body.starts_with("first\n"), "reads go on");
    app.seen.go.store(true, Ordering::Release);
    assert!(under_way.join().expect("no panic").body.starts_with("first\n"));
    assert!(!next.is_finished());
    node.set_role(Role::Replica {
        primary: Some(Primary { hostname: "second".to_owned(), proxy: Some(address(second.addr())) }),
    });
    assert!(next.join().expect("no panic").body.starts_with("second\n"));
    // A node that stays the primary after all goes on by itself.
    node.set_role(Role::Primary);
    let next = asking(&first, "POST /", "Content-Length: 0\r\n");
    node.wait_waited_for();
    drop(held);
    assert!(next.join().expect("no panic").body.starts_with("first\n"));
}
