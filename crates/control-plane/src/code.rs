//! Code packages: from the request's bytes to a judged zip in the blob store.

use std::io::Cursor;

use aws_model::{ApiError, types};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ZipError, ZipLimits, inspect_zip_within};
use store::Digest;

use crate::plane::{BlobGuard, ControlPlane};
use crate::record::Code;
use crate::settings::unsupported;

/// `CodeSha256` as the API shows it.
pub(crate) fn sha256(code: &Code) -> String {
    STANDARD.encode(code.digest.as_bytes())
}

/// The members by which create and update name the code.
pub(crate) struct Source<'a> {
    pub zip_file: Option<&'a aws_model::Blob>,
    pub s3: bool,
    pub image: bool,
}

impl<'a> Source<'a> {
    pub fn of_create(code: &'a types::FunctionCode) -> Self {
        Self {
            zip_file: code.zip_file.as_ref(),
            s3: code.s3_bucket.is_some() || code.s3_key.is_some(),
            image: code.image_uri.is_some(),
        }
    }

    pub fn of_update(request: &'a types::UpdateFunctionCodeRequest) -> Self {
        Self {
            zip_file: request.zip_file.as_ref(),
            s3: request.s3_bucket.is_some() || request.s3_key.is_some(),
            image: request.image_uri.is_some(),
        }
    }

    /// The zip, or why there is none.
    pub fn zip(&self) -> Result<&'a aws_model::Blob, ApiError> {
        if self.image {
            return Err(ApiError::invalid_parameter_value(
                "Please don't provide ImageUri when updating a function with packageType Zip.",
            ));
        }
        if let Some(zip) = self.zip_file {
            return match self.s3 {
                true => Err(ApiError::invalid_parameter_value(
                    "Please do not provide other FunctionCode parameters when providing a ZipFile.",
                )),
                false => Ok(zip),
            };
        }
        unsupported(self.s3, "Code from S3")?;
        Err(ApiError::invalid_parameter_value("Please provide a source for function code."))
    }
}

impl ControlPlane {
    /// Judges a package without keeping it.
    pub(crate) async fn inspect(&self, zip: &aws_model::Blob) -> Result<Code, ApiError> {
        let limits = self.inner.limits;
        let size = zip.0.len() as u64;
        if size > limits.zipped_code {
            return Err(ApiError::request_entity_too_large(format!(
                "Zipped size must be smaller than {} bytes",
                limits.zipped_code
            )));
        }
        if zip.0.is_empty() {
            return Err(empty());
        }
        let bytes = zip.0.clone();
        let judged = tokio::task::spawn_blocking(move || {
            let within = ZipLimits { unzipped_bytes: limits.unzipped_code, ..ZipLimits::LAMBDA };
            let info = inspect_zip_within(Cursor::new(bytes.clone()), within)?;
            Ok((Digest::of(&bytes), info.unzipped_size))
        });
        match judged.await {
            Ok(Ok((digest, unzipped_size))) => Ok(Code { digest, size, unzipped_size }),
            Ok(Err(error)) => Err(refused(&error)),
            Err(error) => {
                // A panic in the zip reader is ours, but only this package meets it.
                tracing::error!(%error, "judging a code package failed");
                Err(ApiError::service("The code package could not be read."))
            }
        }
    }

    /// Judges a package and stores it. The guard keeps the collector away until a function refers to it.
    pub(crate) async fn store_code(&self, zip: &aws_model::Blob) -> Result<(Code, BlobGuard), ApiError> {
        let code = self.inspect(zip).await?;
        let guard = std::sync::Arc::clone(&self.inner.blob_gate).read_owned().await;
        self.inner.blobs.put(Box::new(Cursor::new(zip.0.clone()))).await.map_err(|error| {
            tracing::error!(%error, "a code package was not stored");
            match error {
                store::BlobError::Full { .. } => ApiError::service("The server has no disk space left."),
                _ => ApiError::service("The code package could not be stored."),
            }
        })?;
        Ok((code, guard))
    }

    /// Refuses code that would not fit beside all that is stored.
    pub(crate) fn check_total_code(&self, more: u64) -> Result<(), ApiError> {
        if self.total_code().saturating_add(more) > self.inner.limits.total_code {
            return Err(ApiError::code_storage_exceeded("Code storage limit exceeded."));
        }
        Ok(())
    }

    /// Unzipped bytes of every version of every function.
    pub(crate) fn total_code(&self) -> u64 {
        let functions = self.inner.read();
        functions
            .values()
            .flat_map(|stored| stored.function.records().map(|version| version.code.unzipped_size).collect::<Vec<_>>())
            .fold(0, u64::saturating_add)
    }
}

fn empty() -> ApiError {
    ApiError::invalid_parameter_value("Uploaded file must be a non-empty zip")
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
