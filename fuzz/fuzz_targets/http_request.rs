//! Whole requests as bytes from the wire: the request line is routed, the input decoded and validated, names and ARNs
//! taken apart, the signature's claim read and judged, a body in chunks decoded. Each must answer, never panic.

#![no_main]

use std::time::{Duration, SystemTime};

use aws_model::arn::Realm;
use aws_model::sigv4::chunked::{self, Kind};
use aws_model::sigv4::{Claim, Head, SigningKey, Verified};
use aws_model::{decode, query_pairs, route};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(request) = Request::parse(bytes) else { return };
    let (path, query) = request.target.split_once('?').map_or((request.target, None), |(p, q)| (p, Some(q)));
    let header = |name: &str| {
        let found = request.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| (*value).to_owned())
    };
    let _ = query_pairs(query.unwrap_or("")).count();
    if let Ok(routed) = route(request.method, path, query) {
        match decode::<serde_json::Value>(routed.operation, &routed.labels, query, header, request.body) {
            Ok(input) => assert!(input.is_object(), "{}", routed.operation),
            Err(error) => assert!(error.status == 400 && !error.render().body.is_empty()),
        }
        let realm = Realm { region: "us-east-1".to_owned(), account: "000000000000".to_owned() };
        if let Some(name) = routed.labels.get("FunctionName")
            && let Ok(found) = realm.resolve(name, None)
        {
            // What an ARN prints must be what it was.
            assert!(realm.arn_of(&found).contains(&found.name));
        }
    }
    signature(&request, path, query);
});

fn signature(request: &Request<'_>, path: &str, query: Option<&str>) {
    let head = Head { method: request.method, path, query, headers: &request.headers };
    let Ok(claim) = Claim::of(&head) else { return };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045);
    let _ = claim.judge(&head, "us-east-1", "lambda", now);
    let key = SigningKey::derive("secret", &claim.scope);
    // Nobody but the holder of the secret makes this hold.
    assert!(claim.verify(&head, Some(&aws_model::sigv4::hash(request.body)), &key).is_err());
    let Some(kind) = claim.content_hash.as_deref().and_then(Kind::parse) else { return };
    let seed = Verified { signature: "0".repeat(64), moment: claim.moment.clone(), scope: claim.scope.clone() };
    let length = head.header("x-amz-decoded-content-length").and_then(|text| text.parse().ok());
    if let Ok(body) = chunked::decode(request.body, kind, length, &seed, &key) {
        assert!(body.len() <= request.body.len());
    }
}

/// A request as HTTP/1.1 writes it; text that is no UTF-8 is refused long before.
struct Request<'a> {
    method: &'a str,
    target: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let mut lines = std::str::from_utf8(&bytes[..end]).ok()?.split("\r\n");
        let (method, rest) = lines.next()?.split_once(' ')?;
        let target = rest.strip_suffix(" HTTP/1.1").unwrap_or(rest);
        let headers = lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
        Some(Self { method, target, headers, body: &bytes[end + 4..] })
    }
}
