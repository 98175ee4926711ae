//! Objects of S3, written into files as they come.

use std::io::SeekFrom;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::HeaderMap;
use hyper::{Method, Response, StatusCode};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use crate::client::{Call, Client, Identity, SendError};
use crate::endpoint::Endpoint;
use crate::retry;
use crate::service::Service;

/// Longest error that is read, in bytes.
const LONGEST_ERROR: usize = 64 * 1024;

/// An object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object<'a> {
    pub bucket: &'a str,
    pub key: &'a str,
    /// One version of it; the current one without.
    pub version: Option<&'a str>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// Bytes.
    pub size: u64,
    /// The version that was read, where the bucket keeps versions.
    pub version: Option<String>,
}

/// An object could not be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// S3 said no.
    #[error("S3 answered {code}: {message}")]
    Refused {
        /// Such as `NoSuchKey`.
        code: String,
        /// S3's words.
        message: String,
        status: StatusCode,
    },
    /// The object has more bytes than the caller takes.
    #[error("the object is larger than {limit} bytes")]
    TooLarge {
        /// What the caller takes.
        limit: u64,
    },
    /// There was no answer, or half of one.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The file could not be written.
    #[error("the object could not be written to its file")]
    File(#[from] std::io::Error),
}

impl DownloadError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Refused { status, .. } => retry::is_transient(*status),
            Self::Send(error) => error.is_transient(),
            Self::TooLarge { .. } | Self::File(_) => false,
        }
    }
}

/// GetObject, into `file` from its beginning. What a try that broke off has written is overwritten by the next one. Of an
/// object over `limit` bytes, no more than that is written.
///
/// # Errors
/// S3 refused, did not answer, or the object is too large; what the file holds then is of no use.
pub async fn download(
    client: &Client,
    object: Object<'_>,
    limit: u64,
    file: &mut File,
) -> Result<Downloaded, DownloadError> {
    let mut failed = 0;
    loop {
        let error = match attempt(client, object, limit, file).await {
            Ok(downloaded) => return Ok(downloaded),
            Err(error) => error,
        };
        failed += 1;
        if !error.is_transient() || failed >= client.options().attempts {
            return Err(error);
        }
        tracing::debug!(%error, bucket = object.bucket, key = object.key, failed, "trying again");
        tokio::time::sleep(retry::pause(failed, retry::random())).await;
    }
}

async fn attempt(
    client: &Client,
    object: Object<'_>,
    limit: u64,
    file: &mut File,
) -> Result<Downloaded, DownloadError> {
    let (endpoint, path) = address(client.endpoint(Service::S3)?, object);
    let call = Call {
        service: Service::S3,
        method: Method::GET,
        path,
        headers: HeaderMap::new(),
        body: Bytes::new(),
        identity: Identity::Own,
        limit: LONGEST_ERROR,
        attempts: 1,
    };
    let response = client.open_at(&call, &endpoint).await?;
    if response.status() != StatusCode::OK {
        return Err(refusal(client, response).await);
    }
    let (head, mut body) = response.into_parts();
    if body.size_hint().lower() > limit {
        return Err(DownloadError::TooLarge { limit });
    }
    file.seek(SeekFrom::Start(0)).await?;
    file.set_len(0).await?;
    let mut size = 0;
    while let Some(data) = client.next(Service::S3, &mut body).await? {
        size += data.len() as u64;
        if size > limit {
            return Err(DownloadError::TooLarge { limit });
        }
        file.write_all(&data).await?;
    }
    file.flush().await?;
    // A bucket whose versioning was suspended calls the version of its objects `null`, which names nothing lasting.
    let version = head.headers.get("x-amz-version-id").and_then(|value| value.to_str().ok());
    Ok(Downloaded { size, version: version.filter(|version| *version != "null").map(str::to_owned) })
}

/// Where an object is. Other servers than AWS have their buckets in the path; so have those of AWS whose dots no
/// certificate covers.
fn address(endpoint: &Endpoint, object: Object<'_>) -> (Endpoint, String) {
    let mut endpoint = endpoint.clone();
    let mut path = String::from("/");
    let host = format!("{}.{}", object.bucket, endpoint.authority);
    match host.parse().ok().filter(|_| endpoint.aws && !object.bucket.contains('.')) {
        Some(authority) => endpoint.authority = authority,
        None => {
            encode(object.bucket, &mut path);
            path.push('/');
        }
    }
    encode(object.key, &mut path);
    if let Some(version) = object.version {
        path.push_str("?versionId=");
        encode(version, &mut path);
    }
    (endpoint, path)
}

/// Percent-encodes all but what URLs leave alone everywhere, and slashes.
fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

async fn refusal(client: &Client, response: Response<Incoming>) -> DownloadError {
    let status = response.status();
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Ok(Some(data)) = client.next(Service::S3, &mut body).await {
        if text.len() + data.len() > LONGEST_ERROR {
            break;
        }
        text.extend_from_slice(&data);
    }
    let (code, message) = read_error(&text).unwrap_or_else(|| {
        let reason = status.canonical_reason().unwrap_or("Unknown");
        (reason.replace(' ', ""), format!("The service answered {status}."))
    });
    DownloadError::Refused { code, message, status }
}

/// Code and message of `<Error><Code>..</Code><Message>..</Message></Error>`.
fn read_error(body: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(body).ok()?;
    let document = roxmltree::Document::parse(text).ok()?;
    let root = document.root_element();
    let child = |name: &str| root.children().find(|node| node.tag_name().name() == name)?.text().map(str::to_owned);
    let code = child("Code").filter(|_| root.tag_name().name() == "Error")?;
    Some((code, child("Message").unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::endpoint::Endpoints;

    fn url(endpoint: &str, bucket: &str, key: &str, version: Option<&str>) -> String {
        let configured = BTreeMap::from([(Service::S3, endpoint.to_owned())]);
        let endpoints = Endpoints::resolve(&configured, |_| None, "eu-west-1").unwrap();
        let (endpoint, path) = address(endpoints.get(Service::S3).unwrap(), Object { bucket, key, version });
        format!("{endpoint}{path}")
    }

    #[test]
    fn buckets_are_in_the_path_but_for_aws() {
        assert_eq!(url("http://localhost:1/p", "b", "a/b c+.zip", None), "http://localhost:1/p/b/a/b%20c%2B.zip");
        assert_eq!(url("aws", "b", "k", Some("v/1")), "https://b.s3.eu-west-1.amazonaws.com/k?versionId=v/1");
        assert_eq!(url("aws", "b.c", "k", None), "https://s3.eu-west-1.amazonaws.com/b.c/k");
        assert_eq!(url("http://h", "b", "ä?#%", None), "http://h/b/%C3%A4%3F%23%25");
    }

    #[test]
    fn errors_are_read_with_and_without_a_namespace() {
        let plain = "<?xml version=\"1.0\"?>\n<Error><Code>NoSuchKey</Code><Message>It &amp; more</Message><Key>k</Key></Error>";
        assert_eq!(read_error(plain.as_bytes()), Some(("NoSuchKey".to_owned(), "It & more".to_owned())));
        let named = "<Error xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Code>X</Code></Error>";
        assert_eq!(read_error(named.as_bytes()), Some(("X".to_owned(), String::new())));
        for nonsense in ["", "<html></html>", "<Error>", "<Error><Message>m</Message></Error>", "\u{0}"] {
            assert_eq!(read_error(nonsense.as_bytes()), None, "{nonsense}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_a_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            read_error(&body);
        }

        #[test]
        fn every_key_makes_a_path(bucket in "[a-z0-9.-]{3,20}", key in "\\PC{1,40}", version in proptest::option::of("\\PC{0,10}")) {
            let text = url("http://localhost:1", &bucket, &key, version.as_deref());
            prop_assert!(text.parse::<hyper::Uri>().is_ok(), "{}", text);
        }
    }
}
