//! The operator's console and its access rules: with a token, anyone who knows it; without one, only this machine.

use actix_web::body::MessageBody;
use actix_web::dev::{HttpServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::http::{StatusCode, uri::Authority};
use actix_web::middleware::{Next, from_fn};
use actix_web::{HttpRequest, web};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use oncekey::Engine;
use oncekey::web::ConsoleAccess;
use sha2::{Digest as _, Sha256};

/// Returns the console, at `/admin/`.
pub(crate) fn console(engine: Engine, token: Option<&str>) -> impl HttpServiceFactory + use<> {
    // Comparing digests keeps the duration from revealing the token.
    let token = token.map(Sha256::digest);
    let access = move |request: &HttpRequest| match &token {
        Some(token) => match credentials(request.headers()) {
            Some((name, given)) if Sha256::digest(&given) == *token => ConsoleAccess::settle(name).with_outcomes(),
            _ => ConsoleAccess::none(),
        },
        None if is_local(request) => ConsoleAccess::settle("local").with_outcomes(),
        None => ConsoleAccess::none(),
    };
    let asks_for_it = token.is_some();
    web::scope("/admin")
        .wrap(from_fn(move |request, next| sign_in(asks_for_it, request, next)))
        .service(oncekey::web::console(engine, access))
}

/// Returns the operator's name and the token, from `Authorization: Basic` or `Authorization: Bearer`.
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let (scheme, given) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(("operator".to_owned(), given.trim().to_owned()));
    }
    let given = scheme.eq_ignore_ascii_case("basic").then(|| BASE64_STANDARD.decode(given.trim()).ok()).flatten()?;
    let given = String::from_utf8(given).ok()?;
    let (name, token) = given.split_once(':')?;
    let name = if name.is_empty() { "operator" } else { name };
    Some((name.to_owned(), token.to_owned()))
}

/// Makes a browser ask its user for a name and the token. Any other unauthorized request gets the console's plain 403.
async fn sign_in<B: MessageBody>(
    asks: bool,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let accepts = request.headers().get(header::ACCEPT).and_then(|accepts| accepts.to_str().ok());
    let is_page = asks && accepts.is_some_and(|accepts| accepts.contains("text/html"));
    let is_action = request.method() == actix_web::http::Method::POST;
    let mut response = next.call(request).await?;
    if is_page && !is_action && response.status() == StatusCode::FORBIDDEN {
        let asked = HeaderValue::from_static("Basic realm=\"The shop's console\", charset=\"UTF-8\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, asked);
        *response.response_mut().status_mut() = StatusCode::UNAUTHORIZED;
    }
    Ok(response)
}

/// Returns whether the request comes directly from this machine. A proxy on this machine forwards the requests of
/// others. A page of another site can also resolve its own name to this machine, so the host must not be a public name.
fn is_local(request: &HttpRequest) -> bool {
    let headers = request.headers();
    let is_passed_on = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"];
    let is_passed_on = is_passed_on.iter().any(|name| headers.contains_key(*name));
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(Authority::as_str));
    let is_here = request.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    is_here && !is_passed_on && host.is_some_and(is_local_name)
}

fn is_local_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    match name.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        // Every public name contains a dot.
        Err(_) => !name.is_empty() && (!name.contains('.') || name.to_ascii_lowercase().ends_with(".localhost")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_name_is_not_this_machine() {
        for local in
            ["localhost", "localhost:8080", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080", "shop", "a.localhost:1"]
        {
            assert!(is_local_name(local), "{local}");
        }
        for other in
            ["", "evil.example", "127.0.0.1.evil.example:8080", "10.0.0.7", "[fe80::1]", "localhost.evil.example"]
        {
            assert!(!is_local_name(other), "{other}");
        }
    }

    #[test]
    fn credentials_come_as_basic_or_bearer() {
        let told = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            credentials(&headers)
        };
        let found = |name: &str, token: &str| Some((name.to_owned(), token.to_owned()));
        assert_eq!(told("Bearer s3cret"), found("operator", "s3cret"));
        assert_eq!(told(&format!("Basic {}", BASE64_STANDARD.encode("ada:s3:cret"))), found("ada", "s3:cret"));
        assert_eq!(told(&format!("basic {}", BASE64_STANDARD.encode(":s3cret"))), found("operator", "s3cret"));
        for bad in ["s3cret", "Basic s3cret", "Digest s3cret", &format!("Basic {}", BASE64_STANDARD.encode("s3cret"))] {
            assert_eq!(told(bad), None, "{bad}");
        }
    }
}
