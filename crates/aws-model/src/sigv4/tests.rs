//! AWS's published examples, what botocore signs, and what must not pass.

use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::chunked::{ChunkError, Kind, decode};
use super::*;

const ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

fn credentials() -> Credentials {
    Credentials { access_key_id: ID.to_owned(), secret_access_key: SECRET.to_owned(), session_token: None }
}

fn at(text: &str) -> SystemTime {
    parse_timestamp(text).unwrap()
}

fn scope(date: &str, service: &str) -> Scope {
    Scope { date: date.to_owned(), region: "us-east-1".to_owned(), service: service.to_owned() }
}

fn signature_of(added: &[(&'static str, String)]) -> String {
    let (_, authorization) = added.iter().find(|(name, _)| *name == "authorization").unwrap();
    authorization.rsplit_once("Signature=").unwrap().1.to_owned()
}

#[test]
fn the_example_of_the_guide_to_iam() {
    let head = Head {
        method: "GET",
        path: "/",
        query: Some("Action=ListUsers&Version=2010-05-08"),
        headers: &[("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"), ("Host", "iam.amazonaws.com")],
    };
    let request = SigningRequest { head, payload: Payload::Bytes(b""), region: "us-east-1", service: "iam" };
    let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned();
    let credentials =
        Credentials { access_key_id: "AKIDEXAMPLE".to_owned(), secret_access_key: secret, session_token: None };
    let added = sign(&request, &credentials, at("20150830T123600Z"));
    assert_eq!(added[0], ("x-amz-date", "20150830T123600Z".to_owned()));
    assert_eq!(
        added.last().unwrap().1,
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
         SignedHeaders=content-type;host;x-amz-date, \
         Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
    );
}

#[test]
fn the_examples_of_the_reference_of_s3() {
    let now = at("20130524T000000Z");
    let host = ("Host", "examplebucket.s3.amazonaws.com");
    let get = Head { method: "GET", path: "/test.txt", query: None, headers: &[host, ("Range", "bytes=0-9")] };
    let put = Head {
        method: "PUT",
        path: "/test%24file.text",
        query: None,
        headers: &[host, ("Date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
    };
    let lifecycle = Head { method: "GET", path: "/", query: Some("lifecycle"), headers: &[host] };
    let list = Head { method: "GET", path: "/", query: Some("max-keys=2&prefix=J"), headers: &[host] };
    for (head, body, expected) in [
        (get, "", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
        (put, "Welcome to Amazon S3.", "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"),
        (lifecycle, "", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        (list, "", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ] {
        let payload = Payload::Bytes(body.as_bytes());
        let request = SigningRequest { head, payload, region: "us-east-1", service: "s3" };
        assert_eq!(signature_of(&sign(&request, &credentials(), now)), expected, "{head:?}");
    }
}

#[test]
fn the_presigned_example() {
    let query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2F\
                 aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=\
                 aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
    let head = Head {
        method: "GET",
        path: "/test.txt",
        query: Some(query),
        headers: &[("host", "examplebucket.s3.amazonaws.com")],
    };
    let claim = Claim::of(&head).unwrap();
    assert_eq!((claim.access_key_id.as_str(), claim.how), (ID, How::Presigned { seconds: 86_400 }));
    let key = SigningKey::derive(SECRET, &claim.scope);
    claim.verify(&head, Some(UNSIGNED_PAYLOAD), &key).unwrap();
    let judge = |now: &str| claim.judge(&head, "us-east-1", "s3", at(now));
    assert_eq!(judge("20130524T235959Z"), Ok(()));
    assert!(matches!(judge("20130525T000001Z"), Err(Refused::Expired(_))));
    assert!(matches!(judge("20130523T235000Z"), Err(Refused::NotYet(_))));
}

/// The chunked upload of S3's reference: 64 KiB and 1 KiB of the letter a.
fn chunked_example() -> (Vec<u8>, Verified) {
    let mut body = Vec::new();
    for (size, signature) in [
        (65_536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
        (1_024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
        (0, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
    ] {
        body.extend_from_slice(format!("{size:x};chunk-signature={signature}\r\n").as_bytes());
        body.extend_from_slice(&vec![b'a'; size]);
        body.extend_from_slice(b"\r\n");
    }
    let signature = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9".to_owned();
    (body, Verified { signature, moment: "20130524T000000Z".to_owned(), scope: scope("20130524", "s3") })
}

#[test]
fn the_chunked_example() {
    let (body, seed) = chunked_example();
    let key = SigningKey::derive(SECRET, &seed.scope);
    let whole = decode(&body, Kind::Signed, Some(66_560), &seed, &key).unwrap();
    assert_eq!(whole, vec![b'a'; 66_560]);
    assert_eq!(decode(&body, Kind::Signed, Some(66_561), &seed, &key), Err(ChunkError::Length));
    let mut changed = body.clone();
    changed[200] = b'b';
    assert_eq!(decode(&changed, Kind::Signed, None, &seed, &key), Err(ChunkError::Signature));
    assert_eq!(decode(&body, Kind::UnsignedTrailer, None, &seed, &key), Err(ChunkError::Signature));
    for end in [body.len() - 4, 70_000, 66_000, 1] {
        assert!(decode(&body[..end.min(body.len() - 4)], Kind::Signed, None, &seed, &key).is_err(), "{end}");
    }
}

#[test]
fn chunks_with_trailers_are_decoded() {
    let seed = Verified {
        signature: "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e".to_owned(),
        moment: "20130524T000000Z".to_owned(),
        scope: scope("20130524", "s3"),
    };
    let key = SigningKey::derive(SECRET, &seed.scope);
    // The example of S3's reference on trailing checksums.
    let mut body = Vec::new();
    for (size, signature) in [
        (65_536, "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2"),
        (1_024, "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7"),
    ] {
        body.extend_from_slice(format!("{size:x};chunk-signature={signature}\r\n").as_bytes());
        body.extend_from_slice(&vec![b'a'; size]);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(
        b"0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n\
          x-amz-checksum-crc32c:sOO8/Q==\r\n\
          x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n",
    );
    assert_eq!(decode(&body, Kind::SignedTrailer, Some(66_560), &seed, &key).map(|data| data.len()), Ok(66_560));
    let changed = String::from_utf8(body).unwrap().replace("sOO8", "sOO9");
    assert_eq!(decode(changed.as_bytes(), Kind::SignedTrailer, None, &seed, &key), Err(ChunkError::Signature));

    let unsigned = b"5\r\nhello\r\n1\r\n!\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
    assert_eq!(decode(unsigned, Kind::UnsignedTrailer, Some(6), &seed, &key), Ok(b"hello!".to_vec()));
    for broken in
        [&b"5\r\nhell\r\n0\r\n\r\n"[..], b"ffffffffffffffff\r\n", b"-1\r\n", b"5", b"0\r\nno colon\r\n\r\n", b""]
    {
        assert_eq!(decode(broken, Kind::UnsignedTrailer, None, &seed, &key), Err(ChunkError::Malformed));
    }
}

/// What botocore 1.44 signed: `SigV4Auth` for Lambda with ARNs, queries and odd headers.
#[test]
fn botocore_signs_the_same() {
    #[derive(serde::Deserialize)]
    struct Vector {
        method: String,
        path: String,
        query: Option<String>,
        headers: Vec<(String, String)>,
        body: String,
        token: Option<String>,
        service: String,
        signature: String,
    }
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("vectors.json")).unwrap();
    assert!(vectors.len() > 5);
    for vector in vectors {
        let headers: Vec<_> = vector.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let head =
            Head { method: &vector.method, path: &vector.path, query: vector.query.as_deref(), headers: &headers };
        let payload = Payload::Bytes(vector.body.as_bytes());
        let request = SigningRequest { head, payload, region: "us-east-1", service: &vector.service };
        let credentials = Credentials { session_token: vector.token.clone(), ..credentials() };
        let added = sign(&request, &credentials, at("20261121T150000Z"));
        assert_eq!(signature_of(&added), vector.signature, "{} {}", vector.method, vector.path);
    }
}

/// A request to Lambda, signed, with its head and the moment.
fn signed(path: &str, query: Option<&str>, body: &[u8]) -> Vec<(String, String)> {
    let mut headers = vec![("host", "127.0.0.1:9000"), ("X-Amz-Invocation-Type", "RequestResponse")];
    let head = Head { method: "POST", path, query, headers: &headers };
    let request = SigningRequest { head, payload: Payload::Bytes(body), region: "us-east-1", service: "lambda" };
    let added = sign(&request, &credentials(), at("20261121T150000Z"));
    headers.extend(added.iter().map(|(name, value)| (*name, value.as_str())));
    headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn check(path: &str, query: Option<&str>, headers: &[(String, String)], body: &[u8], now: &str) -> Result<(), Refused> {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let head = Head { method: "POST", path, query, headers: &headers };
    let claim = Claim::of(&head).unwrap();
    claim.judge(&head, "us-east-1", "lambda", at(now))?;
    let key = SigningKey::derive(SECRET, &claim.scope);
    claim.verify(&head, Some(&hash(body)), &key).map(drop)
}

const NOW: &str = "20261121T150000Z";

#[test]
fn clocks_may_differ_by_five_minutes() {
    let headers = signed("/x", None, b"");
    let check = |now: &str| check("/x", None, &headers, b"", now);
    assert_eq!(check("20261121T150500Z"), Ok(()));
    assert_eq!(check("20261121T145500Z"), Ok(()));
    let text = "20261121T150000Z is now earlier than 20261121T150001Z (20261121T150501Z - 5 min.)";
    assert_eq!(check("20261121T150501Z"), Err(Refused::Expired(text.to_owned())));
    let text = "20261121T150000Z is still later than 20261121T145959Z (20261121T145459Z + 5 min.)";
    assert_eq!(check("20261121T145459Z"), Err(Refused::NotYet(text.to_owned())));
}

#[test]
fn whatever_is_changed_breaks_the_signature() {
    let headers = signed("/a%3Ab/c", Some("Qualifier=1"), b"{}");
    assert_eq!(check("/a%3Ab/c", Some("Qualifier=1"), &headers, b"{}", NOW), Ok(()));
    assert_eq!(check("/a%3Ab/d", Some("Qualifier=1"), &headers, b"{}", NOW), Err(Refused::Mismatch));
    assert_eq!(check("/a%3Ab/c", Some("Qualifier=2"), &headers, b"{}", NOW), Err(Refused::Mismatch));
    assert_eq!(check("/a%3Ab/c", None, &headers, b"{}", NOW), Err(Refused::Mismatch));
    assert_eq!(check("/a%3Ab/c", Some("Qualifier=1"), &headers, b"{ }", NOW), Err(Refused::Mismatch));
    let mut changed = headers.clone();
    changed[1].1 = "Event".to_owned();
    assert_eq!(check("/a%3Ab/c", Some("Qualifier=1"), &changed, b"{}", NOW), Err(Refused::Mismatch));
    let mut twice = headers.clone();
    twice.push(("x-amz-invocation-type".to_owned(), "Event".to_owned()));
    assert_eq!(check("/a%3Ab/c", Some("Qualifier=1"), &twice, b"{}", NOW), Err(Refused::Mismatch));
    let mut added = headers;
    added.push(("x-amz-log-type".to_owned(), "Tail".to_owned()));
    let refused = check("/a%3Ab/c", Some("Qualifier=1"), &added, b"{}", NOW);
    assert!(matches!(refused, Err(Refused::Other(text)) if text.contains("x-amz-log-type")));
}

#[test]
fn claims_that_are_none_are_told_apart() {
    let of = |headers: &[(&str, &str)], query| {
        Claim::of(&Head { method: "GET", path: "/", query, headers }).unwrap_err().to_string()
    };
    assert_eq!(of(&[], None), "Missing Authentication Token");
    assert_eq!(of(&[("authorization", "Bearer x")], None), "Unsupported AWS 'algorithm': 'Bearer'.");
    assert_eq!(
        of(&[("authorization", "AWS4-HMAC-SHA256 Credential=a/20261121/r/s/aws4_request, Signature=x")], None),
        "Authorization header requires 'SignedHeaders' parameter. Authorization header requires existence of either a \
         'X-Amz-Date' or a 'Date' header."
    );
    let malformed = "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=x";
    assert!(of(&[("authorization", malformed), ("x-amz-date", NOW)], None).contains("5 slash-delimited"));
    assert!(of(&[], Some("X-Amz-Algorithm=AWS4-HMAC-SHA256")).contains("'X-Amz-Credential'"));
}

#[test]
fn the_scope_has_to_fit() {
    let headers = signed("/x", None, b"");
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let head = Head { method: "POST", path: "/x", query: None, headers: &headers };
    let mut claim = Claim::of(&head).unwrap();
    assert!(matches!(claim.judge(&head, "eu-west-1", "lambda", at(NOW)), Err(Refused::Region(_))));
    assert!(matches!(claim.judge(&head, "us-east-1", "iam", at(NOW)), Err(Refused::Service(_))));
    claim.scope = scope("20261120", "lambda");
    assert!(matches!(claim.judge(&head, "us-east-1", "lambda", at(NOW)), Err(Refused::Other(_))));
}

proptest! {
    #[test]
    fn what_is_signed_is_verified(
        segments in proptest::collection::vec("[a-zA-Z0-9:$%._~ é-]{0,8}", 0..4),
        pairs in proptest::collection::vec(("[a-zA-Z0-9%+ é&-]{1,6}", "[a-zA-Z0-9%+= é-]{0,6}"), 0..4),
        body in proptest::collection::vec(any::<u8>(), 0..32),
        seconds in 0u64..4_000_000_000,
    ) {
        let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let path = format!("/{}", segments.iter().map(|part| encode(part)).collect::<Vec<_>>().join("/"));
        let query = pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect::<Vec<_>>();
        let query = query.join("&");
        let now = UNIX_EPOCH + Duration::from_secs(seconds);
        let mut headers = vec![("Host", "h")];
        let head = Head { method: "PUT", path: &path, query: Some(&query), headers: &headers };
        let request = SigningRequest { head, payload: Payload::Bytes(&body), region: "r-1", service: "lambda" };
        let added = sign(&request, &credentials(), now);
        headers.extend(added.iter().map(|(name, value)| (*name, value.as_str())));
        let head = Head { method: "PUT", path: &path, query: Some(&query), headers: &headers };
        let claim = Claim::of(&head).unwrap();
        prop_assert_eq!(claim.judge(&head, "r-1", "lambda", now), Ok(()));
        let key = SigningKey::derive(SECRET, &claim.scope);
        prop_assert!(claim.verify(&head, Some(&hash(&body)), &key).is_ok());
        let wrong = SigningKey::derive("another", &claim.scope);
        prop_assert_eq!(claim.verify(&head, Some(&hash(&body)), &wrong), Err(Refused::Mismatch));
    }

    #[test]
    fn any_head_and_any_chunks_are_read_without_a_panic(
        authorization in "(AWS4-HMAC-SHA256 )?\\PC{0,80}",
        query in "(X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-)?\\PC{0,60}",
        date in "\\PC{0,17}",
        body in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        for headers in [&[("authorization", authorization.as_str()), ("x-amz-date", date.as_str())][..], &[]] {
            let head = Head { method: "GET", path: &authorization, query: Some(&query), headers };
            if let Ok(claim) = Claim::of(&head) {
                let _ = claim.judge(&head, "r", "s", UNIX_EPOCH);
                prop_assert!(claim.verify(&head, None, &SigningKey::derive("s", &claim.scope)).is_err());
            }
        }
        let seed = Verified { signature: String::new(), moment: date, scope: scope("20130524", "s3") };
        let key = SigningKey::derive("s", &seed.scope);
        for kind in [Kind::Signed, Kind::SignedTrailer, Kind::UnsignedTrailer] {
            let _ = decode(&body, kind, None, &seed, &key);
        }
    }
}
