//! Consul's HTTP API as far as a lease needs it: sessions, one key, transactions on it.
//! Every call is bounded in time. Must not decide anything.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring::default_provider;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;
use url::Url;

use super::machine::{Entry, Found, Lock};

/// More than any reply has.
const LONGEST_REPLY: usize = 1 << 20;

/// Where a lease is in Consul.
#[derive(Clone, PartialEq, Eq)]
pub struct ConsulPlace {
    /// The agent, without credentials.
    base: Url,
    key: String,
    token: Option<String>,
}

impl std::fmt::Debug for ConsulPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the token.
        write!(f, "ConsulPlace({}, {})", self.base, self.key)
    }
}

impl ConsulPlace {
    /// Reads an agent's URL: a path in it is a prefix of the key, a password the ACL
    /// token.
    pub fn new(url: &str, key: &str) -> Result<ConsulPlace, String> {
        let wrong = || "it must look like \"http://127.0.0.1:8500\" or \"https://:token@host/prefix\"";
        let mut base = Url::parse(url).map_err(|error| format!("{error}: {}", wrong()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() || base.query().is_some() {
            return Err(wrong().to_owned());
        }
        let key: Vec<&str> =
            base.path().split('/').chain(key.split('/')).filter(|part| !part.is_empty()).collect();
        let key = key.join("/");
        if key.is_empty() {
            return Err("the key is empty".to_owned());
        }
        let token = base.password().map(str::to_owned);
        // Neither fails where there is a host.
        let _ = base.set_password(None);
        let _ = base.set_username("");
        base.set_path("");
        Ok(ConsulPlace { base, key, token })
    }

    fn url(&self, path: &str, query: &str) -> String {
        let mut url = self.base.clone();
        url.set_path(path);
        url.set_query(Some(query).filter(|query| !query.is_empty()));
        url.into()
    }
}

/// A client of one agent.
pub(super) struct Api {
    place: ConsulPlace,
    http: Http,
    patience: Duration,
}

/// Without and with TLS: who uses none needs no root certificates.
enum Http {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    modify_index: u64,
    session: Option<String>,
    value: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    #[serde(rename = "ID")]
    id: String,
}

struct Answer {
    status: StatusCode,
    index: Option<u64>,
    body: Bytes,
}

impl Api {
    /// No call takes longer than `patience`, but a watch its own time more.
    pub fn new(place: ConsulPlace, patience: Duration) -> std::io::Result<Api> {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(patience));
        tcp.set_nodelay(true);
        let builder = Client::builder(TokioExecutor::new());
        let http = if place.base.scheme() == "https" {
            tcp.enforce_http(false);
            let tls = HttpsConnectorBuilder::new().with_provider_and_native_roots(default_provider())?;
            Http::Tls(builder.build(tls.https_only().enable_http1().wrap_connector(tcp)))
        } else {
            Http::Plain(builder.build(tcp))
        };
        Ok(Api { place, http, patience })
    }

    /// Reads the key; with an index, as soon as it has another one, or after `wait`.
    pub async fn read(&self, index: Option<u64>, wait: Duration) -> Result<Found, String> {
        // Not from a leader that does not know yet that it is none any more.
        let mut query = "consistent".to_owned();
        if let Some(index) = index {
            query.push_str(&format!("&index={index}&wait={}ms", wait.as_millis()));
        }
        let url = self.place.url(&format!("/v1/kv/{}", self.place.key), &query);
        // Consul adds up to a sixteenth to a watch.
        let patience = if index.is_some() { self.patience + wait + wait / 16 } else { self.patience };
        let answer = self.call(Method::GET, &url, Bytes::new(), patience).await?;
        let entry = match answer.status {
            StatusCode::NOT_FOUND => None,
            StatusCode::OK => {
                let pairs: Vec<Pair> = parse(&answer.body)?;
                let pair = pairs.into_iter().next().ok_or("Consul's reply to a read is empty")?;
                let value = BASE64_STANDARD.decode(pair.value.unwrap_or_default());
                let value =
                    value.map_err(|error| format!("the value that Consul sends is no base64: {error}"))?;
                Some(Entry { index: pair.modify_index, session: pair.session, value })
            }
            _ => return Err(refused("reading the lease's key", &answer)),
        };
        Ok(Found { index: answer.index.unwrap_or(0), entry })
    }

    /// A new session.
    pub async fn create(&self, ttl: Duration, lock_delay: Duration) -> Result<String, String> {
        let body = json!({
            "Name": "litefs",
            "TTL": format!("{}ms", ttl.as_millis()),
            "LockDelay": format!("{}ms", lock_delay.as_millis()),
            "Behavior": "release",
            // The session says whether the node lives; not whether its Consul agent does.
            "NodeChecks": [],
        });
        let answer = self.put("/v1/session/create", body.to_string()).await?;
        match answer.status {
            StatusCode::OK => parse::<Created>(&answer.body).map(|created| created.id),
            _ => Err(refused("creating a session", &answer)),
        }
    }

    /// Renews a session; false if there is none any more.
    pub async fn renew(&self, session: &str) -> Result<bool, String> {
        let answer = self.put(&format!("/v1/session/renew/{session}"), String::new()).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(refused("renewing the session", &answer)),
        }
    }

    /// Ends a session; one that is not there has ended.
    pub async fn destroy(&self, session: &str) -> Result<(), String> {
        let answer = self.put(&format!("/v1/session/destroy/{session}"), String::new()).await?;
        match answer.status {
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
            _ => Err(refused("ending a session", &answer)),
        }
    }

    /// Locks the key, on condition that it is as it was read; false if that cannot be.
    pub async fn lock(&self, lock: &Lock) -> Result<bool, String> {
        let key = &self.place.key;
        let condition = match lock.index {
            Some(index) => json!({ "KV": { "Verb": "check-index", "Key": key, "Index": index } }),
            None => json!({ "KV": { "Verb": "check-not-exists", "Key": key } }),
        };
        let value = BASE64_STANDARD.encode(&lock.body);
        let take = json!({ "KV": { "Verb": "lock", "Key": key, "Value": value, "Session": lock.session } });
        self.transaction("taking the lease", json!([condition, take])).await
    }

    /// Unlocks the key, with a last word; false if the session does not hold it.
    pub async fn unlock(&self, session: &str, body: &[u8]) -> Result<bool, String> {
        let value = BASE64_STANDARD.encode(body);
        let give =
            json!({ "KV": { "Verb": "unlock", "Key": self.place.key, "Value": value, "Session": session } });
        self.transaction("releasing the lease", json!([give])).await
    }

    async fn transaction(&self, what: &str, ops: serde_json::Value) -> Result<bool, String> {
        let answer = self.put("/v1/txn", ops.to_string()).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::CONFLICT => Ok(false),
            _ => Err(refused(what, &answer)),
        }
    }

    async fn put(&self, path: &str, body: String) -> Result<Answer, String> {
        self.call(Method::PUT, &self.place.url(path, ""), body.into(), self.patience).await
    }

    async fn call(
        &self,
        method: Method,
        url: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(token) = &self.place.token {
            request = request.header("x-consul-token", token);
        }
        let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body));
        let request = request.map_err(|error| error.to_string())?;
        let call = async {
            let reply = match &self.http {
                Http::Plain(http) => http.request(request),
                Http::Tls(http) => http.request(request),
            };
            let reply = reply.await.map_err(|error| cause(&error))?;
            let index = reply.headers().get("x-consul-index").and_then(|index| index.to_str().ok());
            let (index, status) = (index.and_then(|index| index.parse().ok()), reply.status());
            let body = Limited::new(reply.into_body(), LONGEST_REPLY).collect().await;
            let body = body.map_err(|error| error.to_string())?.to_bytes();
            Ok(Answer { status, index, body })
        };
        let answer = timeout(patience, call).await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {patience:?}"))).map_err(|why: String| {
            format!(
                "Consul at {} cannot be asked: {why}; is the agent running, is lease.consul.url its address?",
                self.place.base
            )
        })
    }
}

fn refused(what: &str, answer: &Answer) -> String {
    let said = String::from_utf8_lossy(&answer.body);
    let hint = match answer.status {
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
            "; the ACL token (the password in lease.consul.url) needs key:write and session:write"
        }
        _ => "",
    };
    format!("Consul refuses {what}: {} {}{hint}", answer.status, said.trim())
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("Consul's reply is not what it should be: {error}"))
}

/// The innermost reason.
fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_url_is_the_keys_prefix_and_the_password_is_the_token() {
        let place =
            ConsulPlace::new("https://:s3cret@consul.example/apps/x/", "/litefs/main").expect("a place");
        assert_eq!((place.key.as_str(), place.token.as_deref()), ("apps/x/litefs/main", Some("s3cret")));
        assert_eq!(place.url("/v1/kv/a b", "index=1"), "https://consul.example/v1/kv/a%20b?index=1");
        for (url, key) in [("consul:8500", "k"), ("ftp://c", "k"), ("http://c", "/"), ("http://c?dc=x", "k")]
        {
            assert!(ConsulPlace::new(url, key).is_err(), "{url} {key}");
        }
    }
}
