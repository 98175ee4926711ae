//! What does not need a server: the check of a head, and the table of derived keys.

use aws_model::sigv4::{Credentials, Payload, SigningRequest, sign};
use control_plane::keys::AccessKey;

use super::*;

fn ring(keys: &[AccessKey]) -> KeyRing {
    let keys = std::sync::Mutex::new(Some(keys.to_vec()));
    KeyRing::new(Box::new(move || keys.lock().unwrap().take()))
}

#[test]
fn signing_keys_are_derived_once_and_again_for_another_secret() {
    let key = AccessKey::generate("", Timestamp(0)).unwrap();
    let auth = Auth::new(ring(std::slice::from_ref(&key)));
    let now = SystemTime::now();
    let head = Head { method: "GET", path: "/", query: None, headers: &[("host", "h")] };
    let request = SigningRequest { head, payload: Payload::Bytes(b""), region: "r", service: "lambda" };
    let verify = |secret: &str| {
        let credentials =
            Credentials { access_key_id: key.id.clone(), secret_access_key: key.secret.clone(), session_token: None };
        let added = sign(&request, &credentials, now);
        let headers: Vec<_> =
            [("host", "h")].into_iter().chain(added.iter().map(|(name, value)| (*name, value.as_str()))).collect();
        let head = Head { headers: &headers, ..head };
        let claim = Claim::of(&head).unwrap();
        let signing = auth.signing_key(&key.id, secret, &claim.scope);
        claim.verify(&head, Some(&hash(b"")), &signing).is_ok()
    };
    assert!(verify(&key.secret));
    assert!(verify(&key.secret));
    assert_eq!(auth.signing.read().unwrap().len(), 1);
    assert!(!verify("another"));
    assert!(verify(&key.secret));
    assert_eq!(auth.signing.read().unwrap().len(), 1);
}

#[test]
fn the_table_of_derived_keys_is_bounded() {
    let auth = Auth::new(ring(&[]));
    for number in 0..MAX_SIGNING_KEYS + 10 {
        let scope = Scope { date: "20260102".to_owned(), region: number.to_string(), service: "lambda".to_owned() };
        auth.signing_key("AKIA", "secret", &scope);
    }
    assert!(auth.signing.read().unwrap().len() <= MAX_SIGNING_KEYS);
}
