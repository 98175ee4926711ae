//! Code packages: from the request's bytes, or an object in S3, to a judged zip in the blob store.

use std::io::{self, Cursor, Seek};

use aws_model::{ApiError, types};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use image::{ZipError, ZipLimits, inspect_zip_within};
use sha2::{Digest as _, Sha256};
use store::{BlobRead, Digest};

use crate::objects::ObjectRef;
use crate::plane::{BlobGuard, ControlPlane};
use crate::record::Code;

/// Bytes hashed at a time.
const CHUNK: usize = 128 * 1024;

/// `CodeSha256` as the API shows it.
pub(crate) fn sha256(code: &Code) -> String {
    STANDARD.encode(code.digest.as_bytes())
}

/// The members by which create and update name the code.
pub(crate) struct Source<'a> {
    pub zip_file: Option<&'a aws_model::Blob>,
    pub s3_bucket: Option<&'a str>,
    pub s3_key: Option<&'a str>,
    pub s3_object_version: Option<&'a str>,
    pub s3_object_storage_mode: Option<&'a str>,
    pub image: bool,
}

/// Where the bytes of a package are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Package {
    /// In the request.
    Sent(Bytes),
    /// In S3.
    Object {
        object: ObjectRef,
        /// `S3ObjectStorageMode` is `REFERENCE`.
        by_reference: bool,
    },
}

/// A package that was read and found to be a zip that can be unpacked.
struct Judged {
    code: Code,
    content: Box<dyn BlobRead>,
    reference: Option<ObjectRef>,
}

/// A package as a version records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub code: Code,
    /// The object that the caller wants to be used where it lies.
    pub reference: Option<ObjectRef>,
}

impl<'a> Source<'a> {
    pub fn of_create(code: &'a types::FunctionCode) -> Self {
        Self {
            zip_file: code.zip_file.as_ref(),
            s3_bucket: code.s3_bucket.as_deref(),
            s3_key: code.s3_key.as_deref(),
            s3_object_version: code.s3_object_version.as_deref(),
            s3_object_storage_mode: code.s3_object_storage_mode.as_deref(),
            image: code.image_uri.is_some(),
        }
    }

    pub fn of_update(request: &'a types::UpdateFunctionCodeRequest) -> Self {
        Self {
            zip_file: request.zip_file.as_ref(),
            s3_bucket: request.s3_bucket.as_deref(),
            s3_key: request.s3_key.as_deref(),
            s3_object_version: request.s3_object_version.as_deref(),
            s3_object_storage_mode: request.s3_object_storage_mode.as_deref(),
            image: request.image_uri.is_some(),
        }
    }

    pub fn of_layer(content: &'a types::LayerVersionContentInput) -> Self {
        Self {
            zip_file: content.zip_file.as_ref(),
            s3_bucket: content.s3_bucket.as_deref(),
            s3_key: content.s3_key.as_deref(),
            s3_object_version: content.s3_object_version.as_deref(),
            s3_object_storage_mode: content.s3_object_storage_mode.as_deref(),
            image: false,
        }
    }

    /// Where the package is, or why there is none.
    pub fn package(&self) -> Result<Package, ApiError> {
        if self.image {
            return Err(ApiError::invalid_parameter_value(
                "Please don't provide ImageUri when updating a function with packageType Zip.",
            ));
        }
        match (self.zip_file, self.s3_bucket, self.s3_key) {
            (Some(zip), None, None) => Ok(Package::Sent(zip.0.clone())),
            (Some(_), _, _) => Err(ApiError::invalid_parameter_value(
                "Please do not provide other FunctionCode parameters when providing a ZipFile.",
            )),
            (None, Some(bucket), Some(key)) => Ok(Package::Object {
                object: ObjectRef {
                    bucket: bucket.to_owned(),
                    key: key.to_owned(),
                    version: self.s3_object_version.map(str::to_owned),
                },
                by_reference: self.s3_object_storage_mode == Some("REFERENCE"),
            }),
            (None, _, _) => Err(missing()),
        }
    }
}

impl ControlPlane {
    /// Judges a package without keeping it.
    pub(crate) async fn inspect(&self, package: &Package) -> Result<Taken, ApiError> {
        let judged = self.judge(package).await?;
        Ok(Taken { code: judged.code, reference: judged.reference })
    }

    /// Keeps the collector away for as long as the guard lives. One request takes one guard and takes it late: a collector
    /// that waits for it keeps others from getting theirs.
    pub(crate) async fn keep_blobs(&self) -> BlobGuard {
        std::sync::Arc::clone(&self.inner.blob_gate).read_owned().await
    }

    /// Judges a package and stores it. The guard keeps the collector away until something refers to it.
    pub(crate) async fn store_code(&self, package: &Package) -> Result<(Taken, BlobGuard), ApiError> {
        let judged = self.judge(package).await?;
        let guard = self.keep_blobs().await;
        let stored = self.inner.blobs.put(Box::new(judged.content)).await.map_err(|error| {
            tracing::error!(%error, "a code package was not stored");
            match error {
                store::BlobError::Full { .. } => ApiError::service("The server has no disk space left."),
                _ => ApiError::service("The code package could not be stored."),
            }
        })?;
        if stored != judged.code.digest {
            tracing::error!(judged = %judged.code.digest, %stored, "a code package changed while it was read");
            return Err(ApiError::service("The code package could not be stored."));
        }
        Ok((Taken { code: judged.code, reference: judged.reference }, guard))
    }

    async fn judge(&self, package: &Package) -> Result<Judged, ApiError> {
        let limits = self.inner.limits;
        let (mut content, size, reference): (Box<dyn BlobRead>, _, _) = match package {
            Package::Sent(zip) => {
                let size = zip.len() as u64;
                if size > limits.zipped_code {
                    return Err(ApiError::request_entity_too_large(format!(
                        "Zipped size must be smaller than {} bytes",
                        limits.zipped_code
                    )));
                }
                (Box::new(Cursor::new(zip.clone())), size, None)
            }
            Package::Object { object, by_reference } => {
                // A zip that is larger than its files may be is refused before it is read whole.
                let fetched = self.inner.objects.fetch(object, limits.unzipped_code).await;
                let fetched = fetched.map_err(|error| error.refusal(object))?;
                let reference = if *by_reference {
                    let Some(version) = fetched.version else { return Err(without_versions(object)) };
                    Some(ObjectRef { version: Some(version), ..object.clone() })
                } else {
                    None
                };
                (fetched.content, fetched.size, reference)
            }
        };
        if size == 0 {
            return Err(empty());
        }
        let judged = tokio::task::spawn_blocking(move || {
            let within = ZipLimits { unzipped_bytes: limits.unzipped_code, ..ZipLimits::LAMBDA };
            let unzipped_size = inspect_zip_within(&mut content, within)?.unzipped_size;
            let digest = digest(&mut content).and_then(|digest| content.rewind().map(|()| digest));
            Ok((digest.map(|digest| Code { digest, size, unzipped_size }), content))
        });
        match judged.await {
            Ok(Ok((Ok(code), content))) => Ok(Judged { code, content, reference }),
            Ok(Ok((Err(error), _))) => Err(unreadable(&error)),
            Ok(Err(error)) => Err(refused(&error)),
            // A panic in the zip reader is ours, but only this package meets it.
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// Refuses code that would not fit beside all that is stored.
    pub(crate) fn check_total_code(&self, more: u64) -> Result<(), ApiError> {
        if self.total_code().saturating_add(more) > self.inner.limits.total_code {
            return Err(ApiError::code_storage_exceeded("Code storage limit exceeded."));
        }
        Ok(())
    }

    /// Unzipped bytes of every version of every function and of every layer.
    pub(crate) fn total_code(&self) -> u64 {
        let layers = self.inner.layers.all();
        let layers =
            layers.iter().flat_map(|(_, layer)| layer.versions.values().map(|version| version.code.unzipped_size));
        layers.fold(self.inner.usage().code(), u64::saturating_add)
    }
}

/// The digest of all bytes, from the first on.
fn digest(content: &mut dyn BlobRead) -> io::Result<Digest> {
    content.rewind()?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match content.read(&mut chunk)? {
            0 => return Ok(Digest::from_bytes(hasher.finalize().into())),
            read => hasher.update(&chunk[..read]),
        }
    }
}

/// The refusal of a request without code.
pub(crate) fn missing() -> ApiError {
    ApiError::invalid_parameter_value("Please provide a source for function code.")
}

fn empty() -> ApiError {
    ApiError::invalid_parameter_value("Uploaded file must be a non-empty zip")
}

fn unreadable(error: &dyn std::error::Error) -> ApiError {
    tracing::error!(%error, "judging a code package failed");
    ApiError::service("The code package could not be read.")
}

fn without_versions(object: &ObjectRef) -> ApiError {
    ApiError::invalid_parameter_value(format!(
        "S3ObjectStorageMode REFERENCE needs an object that has a version: enable versioning on the bucket {} and upload \
         the object again.",
        object.bucket
    ))
}

/// What the caller reads of a refused package. Lambda has one sentence for all broken archives.
fn refused(error: &ZipError) -> ApiError {
    tracing::debug!(%error, "a code package was refused");
    match error {
        ZipError::TooLarge { limit } => {
            ApiError::invalid_parameter_value(format!("Unzipped size must be smaller than {limit} bytes"))
        }
        ZipError::Empty => empty(),
        _ => ApiError::invalid_parameter_value(
            "Could not unzip uploaded file. Please check your file, then try to upload again.",
        ),
    }
}
