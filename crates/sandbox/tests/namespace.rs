//! The namespace backend with real processes: what they can do, cannot do, and leave behind.

mod support;

use sandbox::{Backend, Exit};
use support::{rig, sh};

#[tokio::test(flavor = "multi_thread")]
async fn a_process_runs_and_its_output_and_exit_code_come_back() {
    let Some(rig) = rig() else { return };
    let sandbox = rig.sandbox("runs").await;
    let finished = sh(&*sandbox, "echo out; echo err >&2; exit 7").await;
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(finished.exit, Exit::Code(7));
    sandbox.destroy().await;
    rig.backend.shutdown().await;
}
