//! The headers that a proxy changes: those for one connection only (RFC 9110 §7.6.1),
//! those that say who asked, and the token's. Must not decide where a request goes.

use std::net::SocketAddr;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::token::Token;
use crate::words::DbName;

/// The token, both ways, for clients without cookies.
pub const TOKEN: HeaderName = HeaderName::from_static("litefs-txid");
/// How often the request was passed from proxy to proxy.
pub const HOPS: HeaderName = HeaderName::from_static("litefs-hops");
/// What Fly.io's router repeats a request on.
pub const FLY_REPLAY: HeaderName = HeaderName::from_static("fly-replay");

const COOKIE: &str = "__txid";
/// How long a client carries a token: the longest that a replica may be behind before
/// its readers may see older data than they did.
const COOKIE_AGE: u32 = 300;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Of one connection, whether `Connection` names them or not.
const HOP_BY_HOP: [HeaderName; 7] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Takes out what is of one connection only; returns the protocol that the other side
/// wants to change to, if it does.
pub fn strip(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let upgrade = headers.get(header::UPGRADE).cloned();
    let trailers = headers.get(header::TE).is_some_and(|te| has_word(te, "trailers"));
    let mut wants_upgrade = false;
    // Most have none.
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderValue> = headers.get_all(header::CONNECTION).iter().cloned().collect();
        for name in named.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')) {
            let name = name.trim();
            wants_upgrade |= name.eq_ignore_ascii_case("upgrade");
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    upgrade.filter(|_| wants_upgrade)
}

/// Says again that the connection changes its protocol.
pub fn upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

fn has_word(value: &HeaderValue, word: &str) -> bool {
    value.to_str().is_ok_and(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case(word)))
}

/// Says who asked, by which protocol and for which host; what an earlier proxy said of
/// that stays.
pub fn say_who(headers: &mut HeaderMap, client: SocketAddr) {
    let client = client.ip().to_canonical().to_string();
    let before: Vec<&str> =
        headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let chain = if before.is_empty() { client } else { format!("{}, {client}", before.join(", ")) };
    if let Ok(chain) = HeaderValue::try_from(chain) {
        headers.insert(FORWARDED_FOR, chain);
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
}

/// How often the request was passed on already.
pub fn hops(headers: &HeaderMap) -> u32 {
    headers.get(HOPS).and_then(|hops| hops.to_str().ok()).and_then(|hops| hops.parse().ok()).unwrap_or(0)
}

/// What a client has seen, by its header and its cookie.
pub fn token(headers: &HeaderMap, tracked: &[DbName]) -> Token {
    let mut token = Token::default();
    if let Some(text) = headers.get(TOKEN).and_then(|value| value.to_str().ok()) {
        token.merge(Token::parse(text.trim(), tracked));
    }
    for cookies in headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()) {
        for (name, value) in cookies.split(';').filter_map(|cookie| cookie.split_once('=')) {
            if name.trim() == COOKIE {
                token.merge(Token::parse(value.trim(), tracked));
            }
        }
    }
    token
}

/// Gives a client its token.
pub fn give(headers: &mut HeaderMap, token: &Token, tracked: &[DbName]) {
    let text = token.text(tracked);
    let cookie = format!("{COOKIE}={text}; Path=/; Max-Age={COOKIE_AGE}; HttpOnly");
    if let (Ok(text), Ok(cookie)) = (HeaderValue::try_from(text), HeaderValue::try_from(cookie)) {
        headers.insert(TOKEN, text);
        headers.append(header::SET_COOKIE, cookie);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::try_from(*name).expect("a name");
            headers.append(name, HeaderValue::try_from(*value).expect("a value"));
        }
        headers
    }

    #[test]
    fn what_is_of_one_connection_goes_and_the_rest_stays() {
        let mut some = headers(&[
            ("connection", "keep-alive, X-One"),
            ("connection", "x-two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("keep-alive", "5"),
            ("te", "gzip, trailers"),
            ("trailer", "x-sum"),
            ("transfer-encoding", "chunked"),
            ("proxy-authorization", "secret"),
            ("upgrade", "h2c"),
            ("host", "h"),
        ]);
        assert_eq!(strip(&mut some), None, "an upgrade that Connection does not name is none");
        let left = headers(&[("x-three", "3"), ("te", "trailers"), ("trailer", "x-sum"), ("host", "h")]);
        assert_eq!(some, left);
        let mut some = headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(strip(&mut some), Some(HeaderValue::from_static("websocket")));
        assert!(some.is_empty());
    }

    #[test]
    fn an_application_learns_who_asked_through_every_proxy() {
        let client = "[::ffff:10.0.0.1]:99".parse().expect("an address");
        let mut fresh = headers(&[("host", "app.example")]);
        say_who(&mut fresh, client);
        assert_eq!(fresh.get(FORWARDED_FOR).expect("one"), "10.0.0.1");
        assert_eq!(fresh.get(FORWARDED_PROTO).expect("one"), "http");
        assert_eq!(fresh.get(FORWARDED_HOST).expect("one"), "app.example");
        let mut passed = headers(&[
            ("host", "inner"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "outer"),
        ]);
        say_who(&mut passed, client);
        assert_eq!(passed.get(FORWARDED_FOR).expect("one"), "1.1.1.1, 2.2.2.2, 10.0.0.1");
        assert_eq!(passed.get_all(FORWARDED_FOR).iter().count(), 1);
        assert_eq!(passed.get(FORWARDED_PROTO).expect("one"), "https");
        assert_eq!(passed.get(FORWARDED_HOST).expect("one"), "outer");
    }

    #[test]
    fn a_token_comes_by_header_or_cookie_and_the_later_counts() {
        let tracked = [DbName::new("a").expect("a name")];
        let some = headers(&[("cookie", "x=1; __txid=5/8000000000000001;y=2"), ("litefs-txid", "4")]);
        assert_eq!(token(&some, &tracked).text(&tracked), "0000000000000005/8000000000000001");
        let mut reply = HeaderMap::new();
        give(&mut reply, &token(&some, &tracked), &tracked);
        let cookie = "__txid=0000000000000005/8000000000000001; Path=/; Max-Age=300; HttpOnly";
        assert_eq!(reply.get(header::SET_COOKIE).expect("a cookie"), cookie);
    }
}
