//! Signatures from anywhere: reading a claim, judging it and taking chunks apart must answer, never panic, and nothing
//! that was not signed may pass.

#![no_main]

use std::time::UNIX_EPOCH;

use aws_model::sigv4::chunked::{Kind, decode};
use aws_model::sigv4::{Claim, Head, Scope, SigningKey, Verified};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (String, String, Option<String>, Vec<(String, String)>, Vec<u8>)| {
    let (method, path, query, headers, body) = input;
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let head = Head { method: &method, path: &path, query: query.as_deref(), headers: &headers };
    if let Ok(claim) = Claim::of(&head) {
        let _ = claim.judge(&head, &claim.scope.region, &claim.scope.service, UNIX_EPOCH);
        let key = SigningKey::derive("a secret that nobody has", &claim.scope);
        assert!(claim.verify(&head, None, &key).is_err());
    }
    let scope = Scope { date: "20260102".to_owned(), region: path, service: method };
    let key = SigningKey::derive("a secret that nobody has", &scope);
    let seed = Verified { signature: String::new(), moment: String::new(), scope };
    for kind in [Kind::Signed, Kind::SignedTrailer, Kind::UnsignedTrailer] {
        if let Ok(data) = decode(&body, kind, None, &seed, &key) {
            assert!(kind == Kind::UnsignedTrailer && data.len() <= body.len());
        }
    }
});
