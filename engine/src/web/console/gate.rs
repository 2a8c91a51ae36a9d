//! The checks that every request passes: access rights, the origin of an action, and the answer's headers.

use actix_web::HttpResponse;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode, Uri};
use actix_web::middleware::Next;
use actix_web::{HttpMessage as _, HttpRequest};

use super::access::ConsoleAccess;
use super::pages;

/// Allows only the console's own files. Scripts must not build markup from text.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // With `no-referrer`, a browser would send `Origin: null` with the console's own forms.
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Passes a permitted request to the pages. Every answer gets the security headers, even a refusal.
pub(super) async fn pass(
    access: &impl Fn(&HttpRequest) -> ConsoleAccess,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let mut response = match refusal(access, &request) {
        Some(refused) => request.into_response(refused),
        // No middleware stands between this and the pages, so their errors arrive as responses.
        None => next.call(request).await?.map_into_boxed_body(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// Checks the right first. A request without one learns nothing, not even whether the console accepts such requests.
fn refusal(access: &impl Fn(&HttpRequest) -> ConsoleAccess, request: &ServiceRequest) -> Option<HttpResponse> {
    let Some(operator) = access(request.request()).into_operator() else {
        let why = "You may not use this console. If this service has a sign-in, sign in first.";
        return Some(pages::plain(StatusCode::FORBIDDEN, "No access", why));
    };
    let is_action = !matches!(*request.method(), Method::GET | Method::HEAD);
    if is_action && !operator.settles {
        let why = "You may look, but not settle keys. Nothing was changed.";
        return Some(pages::plain(StatusCode::FORBIDDEN, "No right to settle", why));
    }
    if is_action && !is_same_origin(request.headers(), request.uri()) {
        let why =
            "The form was not sent by a page of this console. Nothing was changed. Open the console and try again.";
        return Some(pages::plain(StatusCode::FORBIDDEN, "Another origin", why));
    }
    request.extensions_mut().insert(operator);
    None
}

/// Returns whether the browser confirms that a page of this origin sent the form, by `Sec-Fetch-Site`, `Origin`, or
/// both. A request with neither header is refused, and so is one in which either header says otherwise.
fn is_same_origin(headers: &HeaderMap, uri: &Uri) -> bool {
    let site = headers.get_all("sec-fetch-site").map(|site| site == "same-origin");
    let origin = headers.get_all(header::ORIGIN).map(|origin| is_of_host(origin, headers, uri));
    let told: Vec<bool> = site.chain(origin).collect();
    !told.is_empty() && told.into_iter().all(|is_same| is_same)
}

/// Returns whether an origin names the requested host. It ignores the scheme, which is unknown behind a proxy.
fn is_of_host(origin: &HeaderValue, headers: &HeaderMap, uri: &Uri) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| uri.authority().map(|authority| authority.as_str()));
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let Some(((scheme, origin), host)) = origin.zip(host) else { return false };
    matches!(scheme, "http" | "https") && origin.eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(headers: &[(&str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse().unwrap(), value.parse().unwrap());
        }
        is_same_origin(&map, &Uri::from_static("/admin/settle"))
    }

    #[test]
    fn only_a_page_of_this_origin_acts() {
        let host = ("host", "shop.example:8080");
        let same = ("origin", "https://shop.example:8080");
        assert!(asked(&[host, same]));
        assert!(asked(&[host, ("sec-fetch-site", "same-origin")]));
        assert!(asked(&[host, same, ("sec-fetch-site", "same-origin")]));
        for refused in [
            &[host][..],
            &[same],
            &[host, ("origin", "null")],
            &[host, ("origin", "https://shop.example")],
            &[host, ("origin", "https://evil.example")],
            &[host, ("origin", "https://shop.example:8080.evil.example")],
            &[host, ("origin", "file://shop.example:8080")],
            &[host, ("origin", "shop.example:8080")],
            &[host, same, ("origin", "https://evil.example")],
            &[host, same, ("sec-fetch-site", "same-site")],
            &[host, same, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "none")],
            &[host, ("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")],
        ] {
            assert!(!asked(refused), "{refused:?}");
        }
    }

    #[test]
    fn http2_names_the_host_in_the_target() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_static("https://shop.example"));
        assert!(is_same_origin(&headers, &Uri::from_static("https://shop.example/admin/settle")));
        assert!(!is_same_origin(&headers, &Uri::from_static("https://other.example/admin/settle")));
    }
}
