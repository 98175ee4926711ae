//! Code packages from S3: fetched into unnamed files, which vanish with the server however it ends.

use std::path::PathBuf;

use aws_client::s3::{self, DownloadError, Object};
use aws_client::{Client, SendError};
use control_plane::objects::{FetchedObject, Fetching, ObjectError, ObjectRef, Objects};
use tokio::fs::File;

/// What the control plane fetches code with.
#[derive(Debug)]
pub struct S3Objects {
    client: Client,
    dir: PathBuf,
}

impl S3Objects {
    /// `dir` is where packages lie while they are judged.
    pub fn new(client: Client, dir: impl Into<PathBuf>) -> Self {
        Self { client, dir: dir.into() }
    }

    async fn download(&self, object: &ObjectRef, limit: u64) -> Result<FetchedObject, ObjectError> {
        let file = tempfile::tempfile_in(&self.dir).map_err(ObjectError::Disk)?;
        let mut file = File::from_std(file);
        let named = Object { bucket: &object.bucket, key: &object.key, version: object.version.as_deref() };
        let downloaded = s3::download(&self.client, named, limit, &mut file).await.map_err(problem)?;
        let mut content = file.into_std().await;
        std::io::Seek::rewind(&mut content).map_err(ObjectError::Disk)?;
        Ok(FetchedObject { content: Box::new(content), size: downloaded.size, version: downloaded.version })
    }
}

impl Objects for S3Objects {
    fn fetch<'a>(&'a self, object: &'a ObjectRef, limit: u64) -> Fetching<'a> {
        Box::pin(self.download(object, limit))
    }
}

fn problem(error: DownloadError) -> ObjectError {
    match error {
        DownloadError::Refused { code, message, .. } => ObjectError::Refused { code, message },
        DownloadError::TooLarge { limit } => ObjectError::TooLarge { limit },
        DownloadError::Send(SendError::NoEndpoint { .. }) => ObjectError::Unconfigured,
        DownloadError::Send(error) => ObjectError::Unreachable(error.chain()),
        DownloadError::File(error) => ObjectError::Disk(error),
    }
}
