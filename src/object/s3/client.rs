//! The SDK's clients: endpoint, region, credentials, timeouts, retries. Must not
//! know operations.

use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::{RetryConfig, RetryPartition, TokenBucket};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, ConfigBag, Credentials, Intercept, ProvideCredentials as _, Region,
    RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents, StalledStreamProtectionConfig,
    interceptors::{BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextMut},
};
use aws_sdk_s3::error::BoxError;
use aws_smithy_http_client::tls;
use aws_smithy_runtime_api::client::connection::CaptureSmithyConnection;

use crate::object::{ObjectErrorKind, S3Location};

/// How long to look for credentials: the chain ends at the instance metadata
/// service, which may never answer where there is none.
const CREDENTIALS_WITHIN: Duration = Duration::from_secs(3);

/// How long content may stand still on its way.
const STALL: Duration = Duration::from_secs(20);

/// How long a store waits and how often it tries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    connect: Duration,
    /// Until a request that carries no content is answered; also the longest for
    /// the content of one answer.
    pub(super) answer: Duration,
    /// Until a request that carries content is sent and answered.
    upload: Duration,
    pub(super) attempts: u32,
}

impl Patience {
    /// For content: a part of 8 MiB must go through a slow line.
    pub(super) const BULK: Patience = Patience {
        connect: Duration::from_secs(3),
        answer: Duration::from_secs(20),
        upload: Duration::from_secs(60),
        attempts: 4,
    };

    /// For a lease with this time to live.
    pub(super) fn lease(ttl: Duration) -> Patience {
        let request = (ttl / 6).clamp(Duration::from_millis(100), Duration::from_secs(5));
        Patience {
            connect: request.min(Duration::from_secs(1)),
            answer: request,
            upload: request,
            attempts: 1,
        }
    }
}

/// The clients of a store; they share their connections.
pub(super) struct Clients {
    /// For what carries no content.
    pub(super) plain: Client,
    /// For content that may be sent again.
    pub(super) upload: Client,
    /// For what must be sent once: a retry would meet its own success and report
    /// it as an unmet condition.
    pub(super) once: Client,
}

/// Makes the clients and looks for credentials; or says of what kind the failure is,
/// and why.
pub(super) async fn connect(
    place: &S3Location,
    patience: Patience,
) -> Result<Clients, (ObjectErrorKind, String)> {
    // ring starts in a sixth of the time that aws-lc takes.
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https();
    // A region is always set: the SDK would ask the instance metadata service, for
    // seconds where there is none.
    let default =
        if place.endpoint().is_some_and(|url| has_region_auto(&url)) { "auto" } else { "us-east-1" };
    let region = RegionProviderChain::first_try(place.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new())
        .or_else(Region::new(default));
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http).region(region);
    if let Some(pair) = &place.credentials {
        loader = loader.credentials_provider(Credentials::new(&pair.id, &pair.secret, None, None, "litefs"));
    }
    let shared = loader.load().await;
    check_credentials(&shared).await?;

    let endpoint = place.endpoint().or_else(|| shared.endpoint_url().map(str::to_owned));
    let mut config = Builder::from(&shared)
        .interceptor(NoReuseAfterRefusal)
        .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(STALL).build())
        .force_path_style(place.force_path_style.unwrap_or(endpoint.is_some()))
        // A token bucket of its own: other stores' failures do not use up its retries.
        .retry_partition(
            RetryPartition::custom(format!("{place}")).token_bucket(TokenBucket::default()).build(),
        );
    if let Some(endpoint) = endpoint {
        // Many servers refuse or ignore the SDK's checksum trailers.
        config = config
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if is_tigris(&endpoint) {
            config = config.interceptor(TigrisConsistent);
        }
        config = config.endpoint_url(endpoint);
    }
    let client = |attempt: Duration, attempts: u32| {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(patience.connect)
            .operation_attempt_timeout(attempt)
            .operation_timeout(attempt * attempts.min(3))
            .build();
        let retries = RetryConfig::standard()
            .with_max_attempts(attempts)
            .with_initial_backoff(Duration::from_millis(100))
            .with_max_backoff(Duration::from_secs(4));
        Client::from_conf(config.clone().timeout_config(timeouts).retry_config(retries).build())
    };
    Ok(Clients {
        plain: client(patience.answer, patience.attempts),
        upload: client(patience.upload, patience.attempts),
        once: client(patience.upload, 1),
    })
}

async fn check_credentials(shared: &aws_config::SdkConfig) -> Result<(), (ObjectErrorKind, String)> {
    let why = match shared.credentials_provider() {
        None => "the chain is empty".to_owned(),
        Some(provider) => {
            match tokio::time::timeout(CREDENTIALS_WITHIN, provider.provide_credentials()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => super::classify::chain_text(&error),
                Err(_) => "no answer within 3 s".to_owned(),
            }
        }
    };
    Err((
        ObjectErrorKind::Refused,
        format!(
            "found no AWS credentials ({why}); looked in the environment (AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY), the profile (AWS_PROFILE in ~/.aws/credentials and ~/.aws/config), \
             web identity, the container's and the instance's role: provide one of them"
        ),
    ))
}

/// Cloudflare R2 and Tigris have one region, `auto`.
fn has_region_auto(endpoint: &str) -> bool {
    is_below(endpoint, "r2.cloudflarestorage.com") || is_tigris(endpoint)
}

fn is_tigris(endpoint: &str) -> bool {
    ["tigris.dev", "storage.dev", "tigrisfiles.io"].iter().any(|domain| is_below(endpoint, domain))
}

/// Whether the endpoint's host is in a domain.
fn is_below(endpoint: &str, domain: &str) -> bool {
    let url = url::Url::parse(endpoint).ok();
    let host = url.as_ref().and_then(|url| url.host_str()).unwrap_or_default();
    host.strip_suffix(domain).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Does not use a connection again on which a request was refused: a server that answers
/// before it has read the content (MinIO, a 412) closes the connection just after, and
/// the next put on it would look as if its reply were lost.
#[derive(Debug)]
struct NoReuseAfterRefusal;

impl Intercept for NoReuseAfterRefusal {
    fn name(&self) -> &'static str {
        "NoReuseAfterRefusal"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // 416 answers reads only, and often.
        let status = context.response().status().as_u16();
        let refused = status >= 400 && status != 416;
        let connection = config.load::<CaptureSmithyConnection>().and_then(CaptureSmithyConnection::get);
        if let Some(connection) = connection.filter(|_| refused) {
            connection.poison();
        }
        Ok(())
    }
}

/// Tigris answers from the nearest region unless it is asked for consistency on
/// every conditional write and every read (its documentation, "Conditional
/// operations").
#[derive(Debug)]
struct TigrisConsistent;

impl Intercept for TigrisConsistent {
    fn name(&self) -> &'static str {
        "TigrisConsistent"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        context.request_mut().headers_mut().insert("x-tigris-consistent", "true");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_waits_a_sixth_of_its_time_to_live_and_never_retries() {
        let patience = Patience::lease(Duration::from_secs(12));
        assert_eq!((patience.answer, patience.attempts), (Duration::from_secs(2), 1));
        assert_eq!(Patience::lease(Duration::ZERO).answer, Duration::from_millis(100));
    }

    #[test]
    fn providers_with_one_region_get_it_by_default() {
        assert!(has_region_auto("https://id.r2.cloudflarestorage.com"));
        assert!(has_region_auto("https://fly.storage.tigris.dev"));
        assert!(has_region_auto("https://t3.storage.dev"));
        assert!(!has_region_auto("http://127.0.0.1:9000"));
        assert!(!has_region_auto("https://mystorage.dev/tigris.dev"));
    }

    /// The head of the first request that a client with this interceptor sends.
    fn first_request(interceptor: impl Intercept + 'static) -> String {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("its number"));
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let (mut request, mut block) = (Vec::new(), [0; 4096]);
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let len = stream.read(&mut block).expect("a request");
                request.extend_from_slice(&block[..len]);
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\netag: \"x\"\r\ncontent-length: 0\r\n\r\n")
                .expect("an answer");
            String::from_utf8(request).expect("text").to_lowercase()
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .region(Region::new("auto"))
            .credentials_provider(Credentials::new("id", "secret", None, None, "litefs"))
            .endpoint_url(endpoint)
            .force_path_style(true)
            .interceptor(interceptor);
        let client = Client::from_conf(config.build());
        runtime.block_on(client.get_object().bucket("b").key("k").send()).expect("the answer");
        server.join().expect("the server")
    }

    #[test]
    fn tigris_is_asked_for_consistency_in_a_header_that_is_signed() {
        let request = first_request(TigrisConsistent);
        assert!(request.contains("\r\nx-tigris-consistent: true\r\n"), "{request}");
        let signed = request.split("signedheaders=").nth(1).and_then(|rest| rest.split(',').next());
        assert!(signed.is_some_and(|names| names.contains("x-tigris-consistent")), "{request}");
    }
}
