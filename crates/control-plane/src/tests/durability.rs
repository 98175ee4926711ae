//! What a restart finds, what a failing store leaves, which packages stay on the disk.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use store::{BoxFuture, CommitError, Entry, StoreError, Write as Change};

use super::*;
use crate::WorkKind;
use crate::roles::NewRole;

#[tokio::test]
async fn everything_survives_a_restart_on_sqlite_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let open = || async {
        let metadata = store::SqliteMetadata::open(folder.path().join("meta.db")).unwrap();
        let blobs = store::FileBlobs::open(folder.path().join("blobs")).unwrap();
        World::over(Arc::new(metadata), Arc::new(blobs), Limits::default()).await
    };
    let world = open().await;
    world.active("f").await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    let update = world.plane.update_function_code(&code_request("f", "second"), NOW).await.unwrap();
    world.create("g").await;
    let role = NewRole {
        name: "lambda-role".to_owned(),
        trust_policy: r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"sts:AssumeRole"}]}"#.to_owned(),
        ..NewRole::default()
    };
    let role = world.plane.roles().create(role, NOW).await.unwrap();
    let before = world.plane.functions();
    drop(world);

    let world = open().await;
    assert_eq!(world.plane.functions(), before);
    assert_eq!(world.plane.roles().get("lambda-role").unwrap(), role);
    let pending = world.plane.pending_work();
    let kinds: Vec<(WorkKind, &str)> = pending.iter().map(|work| (work.kind, work.version.function.as_str())).collect();
    assert_eq!(kinds, [(WorkKind::Update, "f"), (WorkKind::Create, "g")]);
    assert_eq!(pending[0].version, update.work.unwrap().version);
    for work in &pending {
        world.plane.complete(work, Ok(())).await.unwrap();
    }
    assert!(world.plane.pending_work().is_empty());
    let digest = world.plane.resolve("f", None, 0.0).unwrap().version.code.digest;
    assert!(world.blobs.exists(&digest).await.unwrap());
}

#[tokio::test]
async fn packages_go_when_nothing_needs_them() {
    let mut world = World::new().await;
    world.active("f").await;
    world.active("g").await;
    assert_eq!(world.blobs.list().await.unwrap().len(), 1);
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    let accepted = world.plane.update_function_code(&code_request("f", "second"), NOW).await.unwrap();
    world.settle(&accepted, Ok(())).await;
    world.plane.delete_function(&delete_request("g", None)).await.unwrap();
    world.restart().await;
    assert_eq!(world.blobs.list().await.unwrap().len(), 2, "version 1 still needs the first package");
    world.plane.delete_function(&delete_request("f", Some("1"))).await.unwrap();
    world.restart().await;
    assert_eq!(world.blobs.list().await.unwrap().len(), 1);
    world.plane.delete_function(&delete_request("f", None)).await.unwrap();
    world.restart().await;
    assert_eq!(world.blobs.list().await.unwrap(), []);
}

#[tokio::test]
async fn an_update_in_progress_keeps_both_packages() {
    let mut world = World::new().await;
    world.active("f").await;
    world.plane.update_function_code(&code_request("f", "second"), NOW).await.unwrap();
    world.restart().await;
    assert_eq!(world.blobs.list().await.unwrap().len(), 2);
}

/// A store that can be told to refuse commits.
#[derive(Default)]
struct Failing {
    under: MemoryMetadata,
    full: AtomicBool,
}

impl Metadata for Failing {
    fn load<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Vec<(String, Entry)>, StoreError>> {
        self.under.load(table)
    }

    fn get<'a>(&'a self, table: &'a str, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        self.under.get(table, key)
    }

    fn commit<'a>(&'a self, batch: Vec<Change>) -> BoxFuture<'a, Result<Vec<u64>, CommitError>> {
        if self.full.load(Ordering::SeqCst) {
            return Box::pin(async { Err(StoreError::Full { place: "test".to_owned() }.into()) });
        }
        self.under.commit(batch)
    }
}

#[tokio::test]
async fn what_was_not_stored_is_not_shown() {
    let metadata = Arc::new(Failing::default());
    let world = World::over(Arc::clone(&metadata) as _, Arc::new(MemoryBlobs::new()), Limits::default()).await;
    world.active("f").await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    let before = world.plane.functions();
    metadata.full.store(true, Ordering::SeqCst);
    let error = world.plane.create_function(&create_request("g"), NOW).await.unwrap_err();
    assert_eq!(said(&error), ("ServiceException", "The server has no disk space left."));
    assert_eq!(world.configure(json!({"FunctionName": "f", "Timeout": 9})).await.unwrap_err().status, 500);
    assert_eq!(world.plane.delete_function(&delete_request("f", None)).await.unwrap_err().status, 500);
    assert_eq!(world.plane.functions(), before);
    metadata.full.store(false, Ordering::SeqCst);
    assert!(world.configure(json!({"FunctionName": "f", "Timeout": 9})).await.is_ok());
}

#[tokio::test]
async fn another_writer_is_noticed_and_read() {
    let world = World::new().await;
    world.active("f").await;
    let other = open(&world.metadata, &world.blobs, world.limits).await;
    let accepted = world.configure(json!({"FunctionName": "f", "Timeout": 9})).await.unwrap();
    world.settle(&accepted, Ok(())).await;
    let request = serde_json::from_value(json!({"FunctionName": "f", "Timeout": 5})).unwrap();
    let error = other.update_function_configuration(&request, NOW).await.unwrap_err();
    assert_eq!(error.name, "ResourceConflictException");
    assert_eq!(other.functions(), world.plane.functions());
    assert!(other.update_function_configuration(&request, NOW).await.is_ok());
}

#[tokio::test]
async fn secrets_stay_out_of_debug_output() {
    let world = World::new().await;
    let request = create_with("f", json!({"Environment": {"Variables": {"NAME": "s3cr3t"}}}));
    let accepted = world.plane.create_function(&request, NOW).await.unwrap();
    let shown = format!("{:?}", accepted.work);
    assert!(shown.contains("NAME") && !shown.contains("s3cr3t"));
}

/// A store whose commits wait until they are let through.
struct Gated {
    under: MemoryMetadata,
    arrived: tokio::sync::Semaphore,
    open: tokio::sync::Semaphore,
}

impl Metadata for Gated {
    fn load<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Vec<(String, Entry)>, StoreError>> {
        self.under.load(table)
    }

    fn get<'a>(&'a self, table: &'a str, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        self.under.get(table, key)
    }

    fn commit<'a>(&'a self, batch: Vec<Change>) -> BoxFuture<'a, Result<Vec<u64>, CommitError>> {
        Box::pin(async move {
            self.arrived.add_permits(1);
            self.open.acquire().await.unwrap().forget();
            self.under.commit(batch).await
        })
    }
}

#[tokio::test]
async fn a_caller_that_leaves_neither_stops_its_change_nor_blocks_the_next() {
    let closed = || tokio::sync::Semaphore::new(0);
    let metadata = Arc::new(Gated { under: MemoryMetadata::new(), arrived: closed(), open: closed() });
    let world = World::over(Arc::clone(&metadata) as _, Arc::new(MemoryBlobs::new()), Limits::default()).await;
    let request = create_request("f");
    tokio::select! {
        _ = world.plane.create_function(&request, NOW) => panic!("the commit was not let through"),
        permit = metadata.arrived.acquire() => permit.unwrap().forget(),
    }
    assert!(world.plane.function("f").is_none(), "shown before it is durable");
    metadata.open.add_permits(10);
    // The next writer of the same function waits for the one that lost its caller.
    let error = world.plane.create_function(&request, NOW).await.unwrap_err();
    assert_eq!(error.message, "Function already exist: f");
    let digest = world.plane.resolve("f", None, 0.0).unwrap().version.code.digest;
    world.plane.settled().await;
    assert!(world.blobs.exists(&digest).await.unwrap(), "the package of a change without caller was collected");
}
