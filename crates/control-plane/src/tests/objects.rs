//! Code from S3, with a bucket in memory.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::objects::{FetchedObject, Fetching, ObjectError, ObjectRef, Objects};

/// The versions of the objects of every bucket; the last one is the current one. A bucket without versions has `None`.
#[derive(Debug, Clone, Default)]
struct Bucket(BTreeMap<String, Vec<Version>>);

type Version = (Option<String>, Vec<u8>);

impl Objects for Bucket {
    fn fetch<'a>(&'a self, object: &'a ObjectRef, limit: u64) -> Fetching<'a> {
        let refuse = |code: &str, message: &str| {
            Err(ObjectError::Refused { code: code.to_owned(), message: message.to_owned() })
        };
        let fetched = match self.0.get(&object.key) {
            _ if object.bucket == "secret" => refuse("AccessDenied", "Access Denied"),
            None => refuse("NoSuchKey", "The specified key does not exist."),
            Some(versions) => {
                let wanted =
                    |(version, _): &&(Option<String>, Vec<u8>)| object.version.is_none() || *version == object.version;
                match versions.iter().rev().find(wanted) {
                    None => refuse("NoSuchVersion", "The specified version does not exist."),
                    Some((_, content)) if content.len() as u64 > limit => Err(ObjectError::TooLarge { limit }),
                    Some((version, content)) => Ok(FetchedObject {
                        content: Box::new(Cursor::new(content.clone())),
                        size: content.len() as u64,
                        version: version.clone(),
                    }),
                }
            }
        };
        Box::pin(std::future::ready(fetched))
    }
}

async fn plane(limits: Limits) -> ControlPlane {
    let object = |content: &str, version: Option<&str>| (version.map(str::to_owned), package(content).0.to_vec());
    let objects = Bucket(
        [
            ("plain.zip".to_owned(), vec![object("first", None)]),
            ("kept.zip".to_owned(), vec![object("first", Some("v1")), object("second", Some("v2"))]),
            ("text.zip".to_owned(), vec![(None, b"no archive".to_vec())]),
            ("none.zip".to_owned(), vec![(None, vec![])]),
        ]
        .into(),
    );
    let settings =
        Settings { account_id: ACCOUNT.to_owned(), region: "us-east-1".to_owned(), limits, objects: Arc::new(objects) };
    ControlPlane::open(Arc::new(MemoryMetadata::new()), Arc::new(MemoryBlobs::new()), settings).await.unwrap()
}

fn create_from(name: &str, code: Value) -> types::CreateFunctionRequest {
    let body = json!({"FunctionName": name, "Role": ROLE, "Runtime": "python3.12", "Handler": "handler.handler", "Code": code});
    serde_json::from_value(body).unwrap()
}

fn shown_object(plane: &ControlPlane, name: &str, qualifier: Option<&str>) -> Option<types::ResolvedS3Object> {
    let request =
        types::GetFunctionRequest { function_name: Some(name.to_owned()), qualifier: qualifier.map(str::to_owned) };
    plane.get_function(&request, |_| String::new()).unwrap().code.unwrap().resolved_s3_object
}

#[tokio::test]
async fn code_comes_from_a_bucket_as_it_comes_in_a_request() {
    let plane = plane(Limits::default()).await;
    let sent = plane.create_function(&create_from("sent", json!({"ZipFile": null})), NOW).await.unwrap_err();
    assert_eq!(said(&sent), ("InvalidParameterValueException", "Please provide a source for function code."));
    let request = create_from("f", json!({"S3Bucket": "b", "S3Key": "plain.zip"}));
    let accepted = plane.create_function(&request, NOW).await.unwrap();
    let zip = package("first").0;
    let version = plane.function("f").unwrap().latest.clone();
    assert_eq!(version.code.digest, store::Digest::of(&zip));
    assert_eq!(accepted.configuration.code_size, Some(zip.len() as i64));
    assert!(plane.inner.blobs.exists(&version.code.digest).await.unwrap());
    assert_eq!(shown_object(&plane, "f", None), None, "a copy does not point at where it came from");
}

#[tokio::test]
async fn a_version_of_the_object_can_be_named() {
    let plane = plane(Limits::default()).await;
    for (name, version, content) in [("a", None, "second"), ("b", Some("v1"), "first"), ("c", Some("v2"), "second")] {
        let code = json!({"S3Bucket": "b", "S3Key": "kept.zip", "S3ObjectVersion": version});
        plane.create_function(&create_from(name, code), NOW).await.unwrap();
        assert_eq!(plane.function(name).unwrap().latest.code.digest, store::Digest::of(&package(content).0), "{name}");
    }
}

#[tokio::test]
async fn a_reference_is_shown_with_the_version_that_was_read_until_other_code_comes() {
    let plane = plane(Limits::default()).await;
    let code = json!({"S3Bucket": "b", "S3Key": "kept.zip", "S3ObjectStorageMode": "REFERENCE"});
    let mut request = create_from("f", code);
    request.publish = Some(true);
    let created = plane.create_function(&request, NOW).await.unwrap();
    plane.complete(created.work.as_ref().unwrap(), Ok(())).await.unwrap();
    let resolved = types::ResolvedS3Object {
        s3_bucket: Some("b".to_owned()),
        s3_key: Some("kept.zip".to_owned()),
        s3_object_version: Some("v2".to_owned()),
    };
    assert_eq!(shown_object(&plane, "f", None), Some(resolved.clone()));

    plane.update_function_code(&code_request("f", "third"), NOW).await.unwrap();
    assert_eq!(shown_object(&plane, "f", None), None);
    assert_eq!(shown_object(&plane, "f", Some("1")), Some(resolved), "a published version keeps its own");

    let code = json!({"S3Bucket": "b", "S3Key": "plain.zip", "S3ObjectStorageMode": "REFERENCE"});
    let error = plane.create_function(&create_from("g", code), NOW).await.unwrap_err();
    assert_eq!(error.name, "InvalidParameterValueException");
    assert!(error.message.contains("enable versioning on the bucket b"), "{}", error.message);
}

#[tokio::test]
async fn an_update_takes_code_from_a_bucket_and_a_dry_run_keeps_nothing() {
    let world = plane(Limits::default()).await;
    let created = world.create_function(&create_from("f", json!({"S3Bucket": "b", "S3Key": "plain.zip"})), NOW).await;
    world.complete(created.unwrap().work.as_ref().unwrap(), Ok(())).await.unwrap();
    let mut request = types::UpdateFunctionCodeRequest {
        function_name: Some("f".to_owned()),
        s3_bucket: Some("b".to_owned()),
        s3_key: Some("kept.zip".to_owned()),
        dry_run: Some(true),
        ..types::UpdateFunctionCodeRequest::default()
    };
    let second = store::Digest::of(&package("second").0);
    world.update_function_code(&request, NOW).await.unwrap();
    assert!(!world.inner.blobs.exists(&second).await.unwrap());
    request.dry_run = None;
    world.update_function_code(&request, NOW).await.unwrap();
    assert_eq!(world.function("f").unwrap().latest.code.digest, second);
}

#[tokio::test]
async fn what_s3_refuses_is_told_as_recorded() {
    let plane = plane(Limits { unzipped_code: 1_000, ..Limits::default() }).await;
    let cases = [
        (
            json!({"S3Bucket": "b", "S3Key": "absent.zip"}),
            "InvalidParameterValueException",
            "Error occurred while GetObject. S3 Error Code: NoSuchKey. S3 Error Message: The specified key does not exist.",
        ),
        (
            json!({"S3Bucket": "b", "S3Key": "kept.zip", "S3ObjectVersion": "v9"}),
            "InvalidParameterValueException",
            "Error occurred while GetObject. S3 Error Code: NoSuchVersion. S3 Error Message: The specified version does not exist.",
        ),
        (
            json!({"S3Bucket": "secret", "S3Key": "plain.zip"}),
            "AccessDeniedException",
            "Your access has been denied by S3, please make sure your request credentials have permission to GetObject for \
             secret/plain.zip. S3 Error Code: AccessDenied. S3 Error Message: Access Denied",
        ),
        (
            json!({"S3Bucket": "b", "S3Key": "text.zip"}),
            "InvalidParameterValueException",
            "Could not unzip uploaded file. Please check your file, then try to upload again.",
        ),
        (
            json!({"S3Bucket": "b", "S3Key": "none.zip"}),
            "InvalidParameterValueException",
            "Uploaded file must be a non-empty zip",
        ),
        (json!({"S3Bucket": "b"}), "InvalidParameterValueException", "Please provide a source for function code."),
        (
            json!({"S3Bucket": "b", "S3Key": "plain.zip", "ZipFile": "UEs="}),
            "InvalidParameterValueException",
            "Please do not provide other FunctionCode parameters when providing a ZipFile.",
        ),
    ];
    for (code, name, message) in cases {
        let error = plane.create_function(&create_from("f", code), NOW).await.unwrap_err();
        assert_eq!(said(&error), (name, message));
    }
    assert!(plane.function("f").is_none());
}

#[tokio::test]
async fn an_object_larger_than_its_files_may_be_is_refused() {
    let plane = plane(Limits { unzipped_code: 20, ..Limits::default() }).await;
    let request = create_from("f", json!({"S3Bucket": "b", "S3Key": "plain.zip"}));
    let error = plane.create_function(&request, NOW).await.unwrap_err();
    assert_eq!(said(&error), ("InvalidParameterValueException", "Unzipped size must be smaller than 20 bytes"));
}

#[tokio::test]
async fn without_an_s3_the_answer_says_how_to_get_one() {
    let world = World::new().await;
    let request = create_from("f", json!({"S3Bucket": "b", "S3Key": "plain.zip"}));
    let error = world.plane.create_function(&request, NOW).await.unwrap_err();
    assert_eq!(error.name, "InvalidParameterValueException");
    assert!(error.message.contains("AWS_ENDPOINT_URL_S3"), "{}", error.message);
}
