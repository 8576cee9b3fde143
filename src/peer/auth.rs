//! The shared token: whether a request carries it. Must not log it.

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

/// Whether `Authorization: Bearer <token>` is there and right. The comparison
/// takes the same time wherever the first difference is.
pub fn allows(token: Option<&str>, headers: &HeaderMap) -> bool {
    let Some(token) = token else {
        return true;
    };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, given)) = given.and_then(|value| value.split_once(' ')) else {
        return false;
    };
    scheme.eq_ignore_ascii_case("bearer") && given.trim().as_bytes().ct_eq(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_bearer_token_passes() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
            headers
        };
        assert!(allows(None, &HeaderMap::new()));
        assert!(allows(Some("s3cret"), &with("Bearer s3cret")));
        assert!(allows(Some("s3cret"), &with("bearer s3cret")));
        for bad in ["Bearer s3creT", "Bearer s3cret2", "Bearer ", "Basic s3cret", "s3cret"] {
            assert!(!allows(Some("s3cret"), &with(bad)), "{bad}");
        }
        assert!(!allows(Some("s3cret"), &HeaderMap::new()));
    }
}
