//! What only the inside shows: that the counters and tables come back to where they began.

use worker::testing::{Exit, Host, PATIENCE, Process, eventually, request};

use super::*;

fn host<F>(script: impl Fn(Process) -> F + Send + Sync + 'static) -> Host
where
    F: Future<Output = std::io::Result<Exit>> + Send + 'static,
{
    let freeze_delay = Duration::from_millis(1);
    Host::new(worker::Options { freeze_delay, init_timeout: PATIENCE, ..worker::Options::default() }, script)
}

/// Answers, and misbehaves as the payload says.
async fn moody(mut process: Process) -> std::io::Result<Exit> {
    loop {
        let given = process.next().await?;
        match given.payload.as_str() {
            "crash" => return Ok(Exit::Code(1)),
            "hang" => return process.hang().await,
            "answer and end" => {
                process.respond(&given.request_id, "1").await?;
                return Ok(Exit::Code(0));
            }
            _ => process.respond(&given.request_id, "1").await?,
        };
    }
}

/// A small generator, so that a run differs from the next in its timing only.
fn numbers() -> impl FnMut(u64) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_everybody_is_answered_and_the_counters_return_to_zero() {
    let host = host(moody);
    let options = Options {
        max_environments: 4,
        account_concurrency: 12,
        patience: Duration::from_millis(5),
        room_patience: Duration::from_millis(50),
        overlap: 1,
        requests_per_unit: 1_000,
        ..Options::default()
    };
    let manager = WorkerManager::new(host.worker.clone(), options);
    let spec = |version: u64, revision: u64| {
        let mut spec = host.spec(&format!("f{version}"));
        spec.key = VersionKey(format!("f{version}:{revision}"));
        spec.timeout = Duration::from_millis(100);
        Arc::new(spec)
    };
    let mut number = numbers();
    let mut revisions = [0; 3];
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let version = number(3);
        if number(6) == 0 {
            let concurrency = match number(3) {
                0 => Concurrency::default(),
                1 => Concurrency::Shared { kept: number(6) as u32 },
                _ => Concurrency::Reserved(number(6) as u32),
            };
            manager.set_concurrency(&format!("f{version}"), concurrency);
        }
        let revision = &mut revisions[version as usize];
        match number(12) {
            0 => {
                manager.retire(&spec(version, *revision).key);
                *revision += 1;
            }
            1 => manager.set_provisioned(&spec(version, *revision), number(3) as u32),
            kind => {
                let payload = ["crash", "hang", "answer and end"].get(kind as usize - 2).copied().unwrap_or("echo");
                let (manager, spec) = (manager.clone(), spec(version, *revision));
                let caller = async move { manager.invoke(&spec, request("r-1", payload)).await };
                callers.spawn(tokio::time::timeout(PATIENCE, caller));
            }
        }
        if callers.len() >= 16 {
            callers.join_next().await;
        }
    }
    let mut answered = 0;
    while let Some(caller) = callers.join_next().await {
        match caller.expect("no panic").expect("everybody is answered") {
            Ok(_) => answered += 1,
            Err(InvokeError::Throttled { .. }) => {}
            Err(other) => panic!("not a fault of the platform: {other}"),
        }
    }
    assert!(answered > 0);
    eventually("nothing is in flight", || manager.concurrency() == 0).await;
    manager.shutdown(Duration::ZERO).await;
    let fleet = manager.figures().totals.fleet;
    assert_eq!((fleet.environments, fleet.memory_mb, fleet.waiting), (0, 0, 0), "places on the host");
    assert_eq!(manager.concurrency(), 0);
    assert_eq!((host.worker.environments().len(), host.backend.live()), (0, 0));
}

#[tokio::test]
async fn versions_that_nobody_invokes_any_more_are_forgotten() {
    let host = host(Process::echo);
    let idle_timeout = Duration::from_millis(50);
    let manager = WorkerManager::new(host.worker.clone(), Options { idle_timeout, ..Options::default() });
    let [idle, retired, kept] = ["idle", "retired", "kept"].map(|name| Arc::new(host.spec(name)));
    for spec in [&idle, &retired] {
        manager.invoke(spec, request("r-1", "1")).await.expect("an answer");
    }
    manager.set_provisioned(&kept, 1);
    assert_eq!(manager.shared.read().by_key.len(), 3);
    manager.retire(&retired.key);
    let names = || {
        let versions = manager.shared.read();
        (versions.by_key.keys().cloned().collect::<Vec<_>>(), versions.by_id.len(), versions.functions.len())
    };
    eventually("only one is known", || names() == (vec![kept.key.clone()], 1, 1)).await;
    manager.invoke(&idle, request("r-2", "1")).await.expect("an answer");
    manager.shutdown(PATIENCE).await;
}
