//! The control plane through its API, over in-memory and SQLite stores.

mod aliases;
mod attachments;
mod autoscaling;
mod concurrency;
mod durability;
mod functions;
mod layers;
mod mappings;
mod model;
mod objects;
mod permissions;
mod provisioned;
mod qualifiers;
mod scaling;
mod snap_start;
mod updates;
mod usage;
mod versions;

use std::io::{Cursor, Write};
use std::sync::Arc;

use aws_model::{ApiError, Blob, types};
use serde_json::{Value, json};
use store::{Blobs, MemoryBlobs, MemoryMetadata, Metadata};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::objects::NoObjects;
use crate::record::Timestamp;
use crate::{Accepted, ControlPlane, Failure, FailureCode, Limits, Settings};

const ACCOUNT: &str = "123456789012";
const ROLE: &str = "arn:aws:iam::123456789012:role/lambda-role";
/// 2026-01-02T03:04:05.678Z
const NOW: Timestamp = Timestamp(1_767_323_045_678);

/// A control plane and the stores under it, for restarts.
struct World {
    metadata: Arc<dyn Metadata>,
    blobs: Arc<dyn Blobs>,
    limits: Limits,
    plane: ControlPlane,
}

impl World {
    async fn new() -> Self {
        Self::over(Arc::new(MemoryMetadata::new()), Arc::new(MemoryBlobs::new()), Limits::default()).await
    }

    async fn over(metadata: Arc<dyn Metadata>, blobs: Arc<dyn Blobs>, limits: Limits) -> Self {
        let plane = open(&metadata, &blobs, limits).await;
        Self { metadata, blobs, limits, plane }
    }

    async fn restart(&mut self) {
        self.plane.settled().await;
        self.plane = open(&self.metadata, &self.blobs, self.limits).await;
    }

    async fn create(&self, name: &str) -> Accepted {
        self.plane.create_function(&create_request(name), NOW).await.unwrap()
    }

    /// A function that can be invoked.
    async fn active(&self, name: &str) {
        self.settle(&self.create(name).await, Ok(())).await;
    }

    async fn settle(&self, accepted: &Accepted, outcome: Result<(), Failure>) {
        self.plane.complete(accepted.work.as_ref().unwrap(), outcome).await.unwrap();
    }

    async fn configure(&self, change: Value) -> Result<Accepted, ApiError> {
        let request: types::UpdateFunctionConfigurationRequest = serde_json::from_value(change).unwrap();
        self.plane.update_function_configuration(&request, NOW).await
    }

    fn configuration(&self, name: &str, qualifier: Option<&str>) -> Result<types::FunctionConfiguration, ApiError> {
        self.plane.get_function_configuration(&types::GetFunctionConfigurationRequest {
            function_name: Some(name.to_owned()),
            qualifier: qualifier.map(str::to_owned),
        })
    }
}

async fn open(metadata: &Arc<dyn Metadata>, blobs: &Arc<dyn Blobs>, limits: Limits) -> ControlPlane {
    let settings = Settings {
        account_id: ACCOUNT.to_owned(),
        region: "us-east-1".to_owned(),
        limits,
        objects: Arc::new(NoObjects),
    };
    ControlPlane::open(Arc::clone(metadata), Arc::clone(blobs), settings).await.unwrap()
}

/// A zip of one file.
fn package(content: &str) -> Blob {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("handler.py", SimpleFileOptions::default()).unwrap();
    writer.write_all(content.as_bytes()).unwrap();
    Blob(writer.finish().unwrap().into_inner().into())
}

fn create_request(name: &str) -> types::CreateFunctionRequest {
    create_with(name, json!({}))
}

/// A creation with some members set over the usual ones.
fn create_with(name: &str, members: Value) -> types::CreateFunctionRequest {
    let mut body = json!({"FunctionName": name, "Role": ROLE, "Runtime": "python3.12", "Handler": "handler.handler"});
    for (member, value) in members.as_object().unwrap() {
        body[member] = value.clone();
    }
    let mut request: types::CreateFunctionRequest = serde_json::from_value(body).unwrap();
    request.code.get_or_insert_default().zip_file.get_or_insert_with(|| package("first"));
    request
}

fn code_request(name: &str, content: &str) -> types::UpdateFunctionCodeRequest {
    types::UpdateFunctionCodeRequest {
        function_name: Some(name.to_owned()),
        zip_file: Some(package(content)),
        ..types::UpdateFunctionCodeRequest::default()
    }
}

fn publish_request(name: &str) -> types::PublishVersionRequest {
    types::PublishVersionRequest { function_name: Some(name.to_owned()), ..types::PublishVersionRequest::default() }
}

fn delete_request(name: &str, qualifier: Option<&str>) -> types::DeleteFunctionRequest {
    types::DeleteFunctionRequest { function_name: Some(name.to_owned()), qualifier: qualifier.map(str::to_owned) }
}

fn broken_zip() -> Failure {
    Failure { code: FailureCode::InvalidZipFile, reason: "cannot be unpacked".to_owned() }
}

fn said(error: &ApiError) -> (&'static str, &str) {
    (error.name, &error.message)
}
