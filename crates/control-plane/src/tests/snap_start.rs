//! SnapStart: versions that are Pending until their snapshot is there, or is known to be impossible.

use serde_json::json;

use super::*;
use crate::{InitFailure, Work, WorkKind};

fn with_snap_start(publish: bool) -> types::CreateFunctionRequest {
    create_with("f", json!({"SnapStart": {"ApplyOn": "PublishedVersions"}, "Publish": publish}))
}

fn status(shown: &types::FunctionConfiguration) -> (&str, Option<&str>, &str) {
    let optimization = shown.snap_start.as_ref().and_then(|snap_start| snap_start.optimization_status.as_deref());
    (shown.state.as_deref().unwrap(), shown.state_reason_code.as_deref(), optimization.unwrap())
}

impl World {
    async fn published(&self) -> Work {
        let created = self.plane.create_function(&with_snap_start(false), NOW).await.unwrap();
        self.settle(&created, Ok(())).await;
        let accepted = self.plane.publish_version(&publish_request("f")).await.unwrap();
        assert_eq!(status(&accepted.configuration), ("Pending", Some("Creating"), "Off"));
        assert_eq!(accepted.configuration.state_reason.as_deref(), Some("The function is being created."));
        accepted.work.unwrap()
    }
}

#[tokio::test]
async fn a_version_is_pending_until_its_snapshot_is_there() {
    let mut world = World::new().await;
    let work = world.published().await;
    assert_eq!((work.kind, work.version.id.to_string().as_str()), (WorkKind::Snapshot, "1"));
    let pending = world.configuration("f", Some("1")).unwrap();
    assert_eq!(status(&world.configuration("f", None).unwrap()), ("Active", None, "Off"));
    // Published once, made once.
    let again = world.plane.publish_version(&publish_request("f")).await.unwrap();
    assert!(again.work.is_none() && again.configuration == pending);
    // An update meanwhile is another matter, and changes nothing of it.
    let update = world.configure(json!({"FunctionName": "f", "Timeout": 9})).await.unwrap();
    world.settle(&update, Ok(())).await;
    assert_eq!(world.configuration("f", Some("1")).unwrap(), pending);

    world.restart().await;
    let left = world.plane.pending_work();
    assert_eq!(
        left.iter().map(|work| (work.kind, work.version.id)).collect::<Vec<_>>(),
        [(work.kind, work.version.id)]
    );
    assert_eq!(world.plane.complete_snapshot(&work, Ok(true)).await, Ok(true));
    let active = world.configuration("f", Some("1")).unwrap();
    assert_eq!(status(&active), ("Active", None, "On"));
    assert_eq!(active.last_update_status.as_deref(), Some("Successful"));
    assert_ne!(active.revision_id, pending.revision_id);
    assert_eq!(status(&world.configuration("f", None).unwrap()).2, "Off");
    assert!(world.plane.pending_work().is_empty());
    world.restart().await;
    assert_eq!(world.configuration("f", Some("1")).unwrap(), active);

    // A server whose sandboxes cannot be kept says so, and one whose can takes it back.
    for optimized in [false, true] {
        assert_eq!(world.plane.set_optimized(&work.version, optimized).await, Ok(true));
        let expected = if optimized { "On" } else { "Off" };
        assert_eq!(status(&world.configuration("f", Some("1")).unwrap()).2, expected);
    }
}

#[tokio::test]
async fn a_version_that_cannot_be_initialized_has_failed_with_its_reason() {
    let world = World::new().await;
    let work = world.published().await;
    let failure =
        |kind| Failure { code: FailureCode::Init(kind), reason: "Runtime.ImportModuleError: no x".to_owned() };
    world.plane.complete_snapshot(&work, Err(failure(InitFailure::Runtime))).await.unwrap();
    let failed = world.configuration("f", Some("1")).unwrap();
    assert_eq!(status(&failed), ("Failed", Some("FunctionError.RuntimeInitError"), "Off"));
    assert_eq!(failed.state_reason.as_deref(), Some("Runtime.ImportModuleError: no x"));
    assert_eq!(status(&world.configuration("f", None).unwrap()).0, "Active");
    // Late news changes nothing, and what has failed has no snapshot.
    assert_eq!(world.plane.complete_snapshot(&work, Ok(true)).await, Ok(true));
    world.plane.set_optimized(&work.version, true).await.unwrap();
    assert_eq!(world.configuration("f", Some("1")).unwrap(), failed);
}

#[tokio::test]
async fn what_is_published_with_a_change_waits_for_its_code_first() {
    let world = World::new().await;
    let created = world.plane.create_function(&with_snap_start(true), NOW).await.unwrap();
    assert_eq!(created.work.as_ref().unwrap().kind, WorkKind::Create);
    assert_eq!(world.plane.pending_work().len(), 1, "the code alone");
    let function = world.plane.complete(created.work.as_ref().unwrap(), Ok(())).await.unwrap().unwrap();
    assert_eq!(status(&world.configuration("f", None).unwrap()).0, "Active");
    assert_eq!(status(&world.configuration("f", Some("1")).unwrap()).0, "Pending");
    let works = Work::snapshots_of(&function);
    assert_eq!(works.len(), 1);
    world.plane.complete_snapshot(&works[0], Ok(true)).await.unwrap();

    let update = types::UpdateFunctionCodeRequest { publish: Some(true), ..code_request("f", "second") };
    let updated = world.plane.update_function_code(&update, NOW).await.unwrap();
    assert_eq!(status(&updated.configuration).0, "Pending");
    let function = world.plane.complete(updated.work.as_ref().unwrap(), Ok(())).await.unwrap().unwrap();
    let works = Work::snapshots_of(&function);
    assert_eq!(works.iter().map(|work| work.version.id.to_string()).collect::<Vec<_>>(), ["2"]);
    // Where the code is of no use, nothing is left to be made.
    let other = types::UpdateFunctionCodeRequest { publish: Some(true), ..code_request("f", "third") };
    let updated = world.plane.update_function_code(&other, NOW).await.unwrap();
    world.settle(&updated, Err(broken_zip())).await;
    assert_eq!(status(&world.configuration("f", Some("3")).unwrap()).0, "Failed");
    let left = world.plane.pending_work();
    assert_eq!(left.iter().map(|work| work.version.id.to_string()).collect::<Vec<_>>(), ["2"]);
}

#[tokio::test]
async fn a_version_that_was_deleted_or_made_again_meanwhile_is_another_one() {
    let world = World::new().await;
    let work = world.published().await;
    world.plane.delete_function(&delete_request("f", None)).await.unwrap();
    assert_eq!(world.plane.complete_snapshot(&work, Ok(true)).await, Ok(false));
    let again = world.published().await;
    assert_eq!(world.plane.complete_snapshot(&work, Ok(true)).await, Ok(false));
    assert_eq!(status(&world.configuration("f", Some("1")).unwrap()).0, "Pending");
    assert_eq!(world.plane.complete_snapshot(&again, Ok(true)).await, Ok(true));
}

#[tokio::test]
async fn provisioned_concurrency_is_not_for_versions_with_snap_start() {
    let world = World::new().await;
    world.published().await;
    let text = "Provisioned Concurrency is not supported for SnapStart enabled functions.";
    let alias = json!({"FunctionName": "f", "Name": "live", "FunctionVersion": "1"});
    world.plane.create_alias(&serde_json::from_value(alias).unwrap()).await.unwrap();
    for qualifier in ["1", "live"] {
        let request = json!({"FunctionName": "f", "Qualifier": qualifier, "ProvisionedConcurrentExecutions": 1});
        let request = serde_json::from_value(request).unwrap();
        let error = world.plane.put_provisioned_concurrency_config(&request, NOW).await.unwrap_err();
        assert_eq!(said(&error), ("InvalidParameterValueException", text));
    }
}
