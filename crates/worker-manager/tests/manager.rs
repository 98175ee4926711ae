//! The manager with a real worker: pools, limits and ends, with scripted processes in sandboxes of memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Barrier, Semaphore};
use tokio::time::timeout;
use worker::testing::{Exit, Host, PATIENCE, Process, eventually, request};
use worker::{EnvironmentSpec, InvokeReply, SnapshotName};
use worker_manager::{Concurrency, InvokeError, Options, ProvisionFailure, ThrottleReason, WorkerManager};

/// Initializations may take as long as they like on a slow machine.
fn host<F>(script: impl Fn(Process) -> F + Send + Sync + 'static) -> Host
where
    F: Future<Output = std::io::Result<Exit>> + Send + 'static,
{
    let freeze_delay = Duration::from_millis(1);
    Host::new(worker::Options { freeze_delay, init_timeout: PATIENCE, ..worker::Options::default() }, script)
}

fn manager(host: &Host, options: Options) -> WorkerManager {
    WorkerManager::new(host.worker.clone(), options)
}

fn spec(host: &Host, name: &str) -> Arc<EnvironmentSpec> {
    Arc::new(host.spec(name))
}

async fn invoke(manager: &WorkerManager, spec: &Arc<EnvironmentSpec>, payload: &str) -> Result<String, InvokeError> {
    let reply = timeout(PATIENCE, manager.invoke(spec, request("r-1", payload))).await.expect("an answer in time");
    reply.map(|InvokeReply { payload, .. }| String::from_utf8(payload.to_vec()).expect("text"))
}

/// Invokes in the background.
fn begin(
    manager: &WorkerManager,
    spec: &Arc<EnvironmentSpec>,
    payload: &str,
) -> tokio::task::JoinHandle<Result<String, InvokeError>> {
    let (manager, spec, payload) = (manager.clone(), Arc::clone(spec), payload.to_owned());
    tokio::spawn(async move { invoke(&manager, &spec, &payload).await })
}

async fn shut_down(host: &Host, manager: &WorkerManager) {
    manager.shutdown(Duration::ZERO).await;
    assert_eq!(host.worker.environments(), []);
    assert_eq!((host.backend.live(), manager.concurrency()), (0, 0));
}

/// With the usual advice.
fn throttled_by(reason: ThrottleReason) -> InvokeError {
    InvokeError::Throttled { reason, retry_after: Duration::from_secs(1) }
}

/// Functions that have an environment, in order.
fn functions(host: &Host) -> Vec<String> {
    let mut names: Vec<String> = host.worker.environments().into_iter().map(|info| info.function).collect();
    names.sort();
    names
}

/// Runtimes that answer only as often as the semaphore lets them.
fn gated(gate: &Arc<Semaphore>) -> Host {
    let gate = Arc::clone(gate);
    host(move |mut process| {
        let gate = Arc::clone(&gate);
        async move {
            loop {
                let given = process.next().await?;
                gate.acquire().await.expect("never closed").forget();
                process.respond(&given.request_id, &given.payload).await?;
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_asks_again_at_once_stays_in_one_environment_and_within_a_concurrency_of_one() {
    let host = host(Process::echo);
    let manager = manager(
        &host,
        Options { account_concurrency: 1, patience: PATIENCE, requests_per_unit: 1_000, ..Options::default() },
    );
    let spec = spec(&host, "f");
    for count in 0..50 {
        assert_eq!(invoke(&manager, &spec, &count.to_string()).await, Ok(count.to_string()));
        assert_eq!(manager.concurrency(), 0, "counted for longer than its caller waits");
    }
    assert_eq!(host.backend.created(), 1);
    eventually("all are counted", || host.worker.environments()[0].invocations == 50).await;
    assert_eq!(host.worker.cold_starts().len(), 1);
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn invocations_at_once_get_an_environment_each() {
    let together = Arc::new(Barrier::new(4));
    let host = host(move |mut process| {
        let together = Arc::clone(&together);
        async move {
            loop {
                let given = process.next().await?;
                together.wait().await;
                process.respond(&given.request_id, &given.payload).await?;
            }
        }
    });
    let manager = manager(&host, Options { patience: PATIENCE, ..Options::default() });
    let spec = spec(&host, "f");
    for _ in 0..2 {
        let all: Vec<_> = ["1", "2", "3", "4"].map(|payload| begin(&manager, &spec, payload)).into();
        for (at, one) in all.into_iter().enumerate() {
            assert_eq!(one.await.expect("no panic"), Ok((at + 1).to_string()));
        }
    }
    assert_eq!(host.backend.created(), 4);
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn invocations_share_an_environment_where_the_function_asks_for_it() {
    let together = Arc::new(Barrier::new(4));
    let host = host(move |process| {
        let together = Arc::clone(&together);
        async move {
            let serve = |mut place: worker::testing::Place| {
                let together = Arc::clone(&together);
                async move {
                    loop {
                        let given = place.next().await?;
                        together.wait().await;
                        place.respond(&given.request_id, &given.payload).await?;
                    }
                }
            };
            let (one, other) = (serve(process.place()), serve(process.place()));
            let ended: std::io::Result<Exit> = tokio::select! { ended = one => ended, ended = other => ended };
            ended
        }
    });
    let manager = manager(&host, Options { patience: PATIENCE, ..Options::default() });
    let spec = Arc::new(EnvironmentSpec { max_concurrency: 2, ..host.spec("f") });
    for round in 0..3 {
        let invoke = |at: usize| {
            let (manager, spec, id) = (manager.clone(), Arc::clone(&spec), format!("r-{round}-{at}"));
            tokio::spawn(async move { manager.invoke(&spec, request(&id, &at.to_string())).await })
        };
        let all: Vec<_> = (0..4).map(invoke).collect();
        for (at, one) in all.into_iter().enumerate() {
            let reply = timeout(PATIENCE, one).await.expect("an answer in time").expect("no panic").unwrap();
            assert_eq!(reply.payload, at.to_string());
        }
    }
    // As many as are needed, or one for each that came before the first was ready.
    let created = host.backend.created();
    assert!((2..=4).contains(&created), "{created}");
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn after_a_timeout_and_after_a_crash_the_caller_finds_the_same_environment_again() {
    let host = host(|mut process| async move {
        loop {
            let given = process.next().await?;
            match given.payload.as_str() {
                "crash" => return Ok(Exit::Code(1)),
                "hang" => return process.hang().await,
                payload => process.respond(&given.request_id, payload).await?,
            };
        }
    });
    let manager = manager(&host, Options { patience: PATIENCE, ..Options::default() });
    let spec = Arc::new(EnvironmentSpec { timeout: Duration::from_secs(1), ..host.spec("f") });
    for (payload, error) in [("crash", "Runtime exited with error"), ("hang", "timed out"), ("crash", "exit status 1")]
    {
        let reply = invoke(&manager, &spec, payload).await.expect("an answer");
        assert!(reply.contains(error), "{reply}");
    }
    assert_eq!(host.backend.created(), 1);
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn an_environment_that_takes_long_to_settle_is_not_waited_for_longer_than_patience() {
    let gate = Arc::new(Semaphore::new(0));
    let settle = Arc::clone(&gate);
    let host = host(move |mut process| {
        let settle = Arc::clone(&settle);
        async move {
            loop {
                let given = process.next().await?;
                process.respond(&given.request_id, &given.payload).await?;
                settle.acquire().await.expect("never closed").forget();
            }
        }
    });
    let manager = manager(&host, Options { patience: Duration::from_millis(5), ..Options::default() });
    let spec = spec(&host, "f");
    for payload in ["1", "2"] {
        assert_eq!(invoke(&manager, &spec, payload).await, Ok(payload.to_owned()));
    }
    assert_eq!(host.backend.created(), 2);
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn what_is_idle_for_long_goes_and_the_next_invocation_starts_anew() {
    let host = host(Process::echo);
    let manager = manager(&host, Options { idle_timeout: Duration::from_millis(50), ..Options::default() });
    let spec = spec(&host, "f");
    for created in 1..=2 {
        assert_eq!(invoke(&manager, &spec, "1").await, Ok("1".to_owned()));
        assert_eq!(host.backend.created(), created);
        eventually("it goes", || host.worker.environments().is_empty() && host.backend.live() == 0).await;
    }
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn a_version_that_is_no_longer_current_finishes_and_goes() {
    let gate = Arc::new(Semaphore::new(0));
    let host = gated(&gate);
    let manager = manager(&host, Options::default());
    let (old, new) = (spec(&host, "old"), spec(&host, "new"));
    let running = begin(&manager, &old, "1");
    eventually("it runs", || host.worker.cold_starts().len() == 1).await;
    manager.retire(&old.key);
    gate.add_permits(2);
    assert_eq!(running.await.expect("no panic"), Ok("1".to_owned()));
    assert_eq!(invoke(&manager, &new, "2").await, Ok("2".to_owned()));
    eventually("the old one goes", || functions(&host) == ["new"]).await;
    manager.retire(&new.key);
    eventually("an idle one goes at once", || host.backend.live() == 0).await;
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn provisioned_environments_are_kept_and_used_first() {
    let host = host(Process::echo);
    let manager = manager(&host, Options { idle_timeout: Duration::from_millis(50), ..Options::default() });
    let spec = spec(&host, "f");
    manager.set_provisioned(&spec, 2);
    let status = || manager.provisioned(&spec.key);
    eventually("both are there", || status().available == 2).await;
    assert_eq!((status().requested, status().allocated, status().failed), (2, 2, None));
    assert_eq!(invoke(&manager, &spec, "1").await, Ok("1".to_owned()));
    assert_eq!(host.backend.created(), 2);
    eventually("both are there again", || status().available == 2).await;
    manager.set_provisioned(&spec, 1);
    eventually("one goes", || host.backend.live() == 1).await;
    manager.set_provisioned(&spec, 0);
    eventually("the other goes", || host.backend.live() == 0).await;
    assert_eq!(status(), Default::default());
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn a_provisioned_initialization_that_fails_is_reported_and_leaves_nothing() {
    let healthy = Arc::new(AtomicBool::new(false));
    let is_healthy = Arc::clone(&healthy);
    let host = host(move |process| {
        let healthy = is_healthy.load(Ordering::SeqCst);
        async move { if healthy { process.echo().await } else { Ok(Exit::Code(1)) } }
    });
    let manager = manager(&host, Options::default());
    let spec = spec(&host, "f");
    manager.set_provisioned(&spec, 1);
    let status = || manager.provisioned(&spec.key);
    timeout(PATIENCE, manager.fell_short()).await.expect("somebody is told");
    assert_eq!(status().failed, Some(ProvisionFailure::Initialization));
    assert_eq!((status().requested, status().allocated), (1, 0));
    eventually("nothing is left", || host.backend.live() == 0).await;
    healthy.store(true, Ordering::SeqCst);
    manager.set_provisioned(&spec, 1);
    eventually("asked again, it is there", || status().available == 1 && status().failed.is_none()).await;
    manager.set_provisioned(&spec, 0);
    host.backend.fill();
    manager.set_provisioned(&spec, 1);
    timeout(PATIENCE, manager.fell_short()).await.expect("somebody is told again");
    assert_eq!(status().failed, Some(ProvisionFailure::NoRoom), "the host has no room");
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn the_accounts_concurrency_throttles() {
    let gate = Arc::new(Semaphore::new(0));
    let host = gated(&gate);
    let manager = manager(&host, Options { account_concurrency: 1, ..Options::default() });
    let (f, g) = (spec(&host, "f"), spec(&host, "g"));
    let running = begin(&manager, &f, "1");
    eventually("it runs", || manager.concurrency() == 1).await;
    let throttled = throttled_by(ThrottleReason::AccountConcurrency);
    assert_eq!(invoke(&manager, &g, "2").await, Err(throttled));
    gate.add_permits(1);
    assert_eq!(running.await.expect("no panic"), Ok("1".to_owned()));
    assert_eq!(manager.concurrency(), 0);
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn a_full_host_gives_up_what_has_been_idle_longest_and_throttles_where_nothing_is_idle() {
    let gate = Arc::new(Semaphore::new(3));
    let host = gated(&gate);
    let room_patience = Duration::from_millis(200);
    let manager = manager(&host, Options { max_environments: 2, room_patience, ..Options::default() });
    let [a, b, c] = ["a", "b", "c"].map(|name| spec(&host, name));
    for version in [&a, &b] {
        assert_eq!(invoke(&manager, version, "1").await, Ok("1".to_owned()));
        eventually("it is idle", || host.backend.frozen() == host.backend.live()).await;
    }
    assert_eq!(invoke(&manager, &c, "1").await, Ok("1".to_owned()));
    eventually("a makes room", || functions(&host) == ["b", "c"]).await;
    eventually("c is idle", || host.backend.frozen() == host.backend.live()).await;
    let busy = [begin(&manager, &b, "1"), begin(&manager, &c, "1")];
    eventually("both are busy", || host.backend.frozen() == 0).await;
    let full = throttled_by(ThrottleReason::HostCapacity);
    assert_eq!(invoke(&manager, &a, "1").await, Err(full));
    assert_eq!(manager.concurrency(), 2);
    gate.add_permits(2);
    for one in busy {
        assert_eq!(one.await.expect("no panic"), Ok("1".to_owned()));
    }
    // They are about to be idle, for which an invocation on a full host has patience.
    gate.add_permits(1);
    assert_eq!(invoke(&manager, &a, "1").await, Ok("1".to_owned()));
    eventually("there are two again", || host.worker.environments().len() == 2).await;
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn what_the_platform_cannot_do_is_told_apart_and_not_counted() {
    let host = host(Process::echo);
    let manager = manager(&host, Options::default());
    let unknown = Arc::new(EnvironmentSpec { runtime: "cobol1.x".to_owned(), ..host.spec("f") });
    assert!(matches!(invoke(&manager, &unknown, "1").await, Err(InvokeError::RuntimeUnavailable(_))));
    let mut broken = host.spec("g");
    broken.code.path = "/nowhere".into();
    broken.code.digest = "0".repeat(64);
    assert!(matches!(invoke(&manager, &Arc::new(broken), "1").await, Err(InvokeError::Platform(_))));
    host.backend.fill();
    let full = throttled_by(ThrottleReason::HostCapacity);
    assert_eq!(invoke(&manager, &spec(&host, "h"), "1").await, Err(full));
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn a_sandbox_that_breaks_costs_its_invocation_and_nothing_else() {
    let host = host(Process::echo);
    let manager = manager(&host, Options::default());
    let spec = spec(&host, "f");
    assert_eq!(invoke(&manager, &spec, "1").await, Ok("1".to_owned()));
    eventually("it is frozen", || host.backend.frozen() == 1).await;
    host.backend.break_freezers();
    assert!(matches!(invoke(&manager, &spec, "2").await, Err(InvokeError::Platform(text)) if text.contains("freezer")));
    eventually("it is not counted", || manager.concurrency() == 0).await;
    // A new one, which is not frozen yet.
    assert_eq!(invoke(&manager, &spec, "3").await, Ok("3".to_owned()));
    eventually("the broken one is gone", || host.backend.live() == 1).await;
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_the_invocation_to_its_end() {
    let gate = Arc::new(Semaphore::new(0));
    let host = gated(&gate);
    let manager = manager(&host, Options { patience: PATIENCE, ..Options::default() });
    let spec = spec(&host, "f");
    let running = begin(&manager, &spec, "1");
    eventually("it runs", || host.worker.cold_starts().len() == 1).await;
    running.abort();
    assert!(running.await.is_err());
    assert_eq!(manager.concurrency(), 1);
    gate.add_permits(2);
    eventually("it ends", || manager.concurrency() == 0).await;
    assert_eq!(invoke(&manager, &spec, "2").await, Ok("2".to_owned()));
    assert_eq!(host.backend.created(), 1);
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn a_shutdown_waits_for_what_is_in_flight() {
    let gate = Arc::new(Semaphore::new(0));
    let host = gated(&gate);
    let manager = manager(&host, Options::default());
    let spec = spec(&host, "f");
    let running = begin(&manager, &spec, "1");
    eventually("it runs", || host.worker.cold_starts().len() == 1).await;
    let ending = {
        let manager = manager.clone();
        tokio::spawn(async move { manager.shutdown(PATIENCE).await })
    };
    while invoke(&manager, &Arc::new(EnvironmentSpec { runtime: "none".to_owned(), ..host.spec("g") }), "1").await
        != Err(InvokeError::ShuttingDown)
    {
        tokio::task::yield_now().await;
    }
    gate.add_permits(1);
    assert_eq!(running.await.expect("no panic"), Ok("1".to_owned()));
    ending.await.expect("no panic");
    assert_eq!((host.worker.environments().len(), host.backend.live()), (0, 0));
}

#[tokio::test]
async fn a_shutdown_leaves_nothing_whatever_goes_on() {
    let gate = Arc::new(Semaphore::new(1));
    let host = gated(&gate);
    let manager = manager(&host, Options::default());
    let [idle, busy, retired, provisioned, starting] =
        ["idle", "busy", "retired", "provisioned", "starting"].map(|name| spec(&host, name));
    assert_eq!(invoke(&manager, &idle, "1").await, Ok("1".to_owned()));
    manager.set_provisioned(&provisioned, 2);
    eventually("they are there", || manager.provisioned(&provisioned.key).available == 2).await;
    let mut cut_short = vec![begin(&manager, &busy, "1"), begin(&manager, &retired, "1")];
    eventually("they run", || host.worker.cold_starts().len() == 5).await;
    manager.retire(&retired.key);
    host.backend.hold(true);
    cut_short.push(begin(&manager, &starting, "1"));
    eventually("its sandbox is being made", || host.backend.creating() == 1).await;
    let ending = {
        let manager = manager.clone();
        tokio::spawn(async move { manager.shutdown(Duration::ZERO).await })
    };
    let starting = cut_short.pop().expect("three of them").await;
    assert_eq!(starting.expect("no panic"), Err(InvokeError::ShuttingDown));
    for one in cut_short {
        let reply = one.await.expect("no panic").expect("an error payload");
        assert!(reply.contains("the server is shutting down"), "{reply}");
    }
    host.backend.hold(false);
    ending.await.expect("no panic");
    assert_eq!(host.worker.environments(), []);
    assert_eq!((host.backend.live(), manager.concurrency()), (0, 0));
    manager.set_provisioned(&provisioned, 1);
    assert_eq!(invoke(&manager, &idle, "1").await, Err(InvokeError::ShuttingDown));
    assert_eq!(host.backend.created(), 6);
}

#[tokio::test]
async fn a_reservation_holds_over_all_versions_of_a_function_and_keeps_others_out() {
    let gates = [1, 2].map(|_| Arc::new(Semaphore::new(0)));
    let of_payload = gates.clone();
    let host = host(move |mut process| {
        let gates = of_payload.clone();
        async move {
            loop {
                let given = process.next().await?;
                let gate = if given.payload == "1" { &gates[0] } else { &gates[1] };
                gate.acquire().await.expect("never closed").forget();
                process.respond(&given.request_id, &given.payload).await?;
            }
        }
    });
    let manager = manager(&host, Options { account_concurrency: 3, patience: PATIENCE, ..Options::default() });
    let version = |function: &str, number: u32| {
        let key = worker::VersionKey(format!("{function}:{number}"));
        Arc::new(EnvironmentSpec { key, ..host.spec(function) })
    };
    let [one, two, other] = [version("f", 1), version("f", 2), version("g", 1)];
    let throttled = |reason| Err(throttled_by(reason));
    manager.set_concurrency("f", Concurrency::Reserved(2));
    let running = [begin(&manager, &one, "1"), begin(&manager, &two, "1")];
    eventually("both run", || manager.concurrency() == 2).await;
    for version in [&one, &two] {
        assert_eq!(invoke(&manager, version, "1").await, throttled(ThrottleReason::FunctionConcurrency));
    }
    // One place is left in the account; the two of the reservation are nobody else's even when it is idle.
    let third = begin(&manager, &other, "2");
    eventually("it runs", || manager.concurrency() == 3).await;
    gates[0].add_permits(2);
    for one in running {
        one.await.expect("no panic").expect("an answer");
    }
    assert_eq!(invoke(&manager, &other, "2").await, throttled(ThrottleReason::AccountConcurrency));
    // A change holds at once, also for the pool.
    manager.set_concurrency("f", Concurrency::default());
    let fourth = begin(&manager, &other, "2");
    eventually("it runs", || manager.concurrency() == 2).await;
    gates[1].add_permits(2);
    for one in [third, fourth] {
        one.await.expect("no panic").expect("an answer");
    }
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn a_reservation_of_zero_stops_a_function_that_is_warm() {
    let host = host(Process::echo);
    let manager = manager(&host, Options { patience: PATIENCE, ..Options::default() });
    let spec = spec(&host, "f");
    assert_eq!(invoke(&manager, &spec, "1").await, Ok("1".to_owned()));
    manager.set_concurrency("f", Concurrency::Reserved(0));
    let throttled = Err(throttled_by(ThrottleReason::FunctionConcurrency));
    assert_eq!(invoke(&manager, &spec, "2").await, throttled);
    manager.set_concurrency("f", Concurrency::Reserved(1));
    assert_eq!(invoke(&manager, &spec, "3").await, Ok("3".to_owned()));
    assert_eq!(host.backend.created(), 1);
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn requests_come_no_faster_than_their_concurrency_allows_for() {
    let host = host(Process::echo);
    let manager = manager(&host, Options { requests_per_unit: 1, patience: PATIENCE, ..Options::default() });
    let spec = spec(&host, "f");
    manager.set_concurrency("f", Concurrency::Reserved(1));
    // One a second, and one of these takes milliseconds.
    for served in 0..100 {
        match invoke(&manager, &spec, "1").await {
            Ok(_) => assert!(served < 99, "a hundred at once"),
            Err(InvokeError::Throttled { reason, retry_after }) => {
                assert_eq!(reason, ThrottleReason::FunctionRate);
                assert!(retry_after <= Duration::from_secs(1));
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(manager.concurrency(), 0);
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn environments_of_a_function_are_started_no_faster_than_it_may_be_scaled() {
    let gate = Arc::new(Semaphore::new(0));
    let host = gated(&gate);
    let manager = manager(&host, Options { scaling_environments: 2, ..Options::default() });
    let spec = spec(&host, "f");
    let mut running: Vec<_> = (0..20).map(|_| begin(&manager, &spec, "1")).collect();
    // Two at once and one more every five seconds: the others know at once that it is not their turn.
    let (mut refused, mut kept) = (0, Vec::new());
    eventually("most are refused", || running.iter().filter(|one| one.is_finished()).count() >= 10).await;
    for one in running.drain(..) {
        if one.is_finished() {
            match one.await.expect("no panic") {
                Err(InvokeError::Throttled { reason: ThrottleReason::ScalingRate, .. }) => refused += 1,
                other => panic!("{other:?}"),
            }
        } else {
            kept.push(one);
        }
    }
    assert!(refused >= 10);
    gate.add_permits(kept.len());
    for one in kept {
        let ended = one.await.expect("no panic");
        let in_turn = matches!(ended, Ok(_) | Err(InvokeError::Throttled { reason: ThrottleReason::ScalingRate, .. }));
        assert!(in_turn, "{ended:?}");
    }
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn an_invocation_waits_for_room_and_gets_it_when_another_function_is_done() {
    let gate = Arc::new(Semaphore::new(0));
    let host = gated(&gate);
    let options = Options { max_environments: 1, room_patience: PATIENCE, overlap: 0, ..Options::default() };
    let manager = manager(&host, options);
    let [f, g] = ["f", "g"].map(|name| spec(&host, name));
    let first = begin(&manager, &f, "1");
    eventually("it runs", || host.worker.cold_starts().len() == 1).await;
    let second = begin(&manager, &g, "2");
    eventually("it waits", || manager.figures().totals.fleet.waiting == 1).await;
    assert_eq!(host.backend.created(), 1);
    gate.add_permits(2);
    assert_eq!(first.await.expect("no panic"), Ok("1".to_owned()));
    assert_eq!(second.await.expect("no panic"), Ok("2".to_owned()));
    assert_eq!(functions(&host), ["g"]);
    assert_eq!(manager.figures().totals.fleet.evictions, 1);
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn figures_tell_what_is_there_and_what_has_happened() {
    let gate = Arc::new(Semaphore::new(0));
    let host = gated(&gate);
    let manager = manager(&host, Options::default());
    let [f, g] = ["f", "g"].map(|name| spec(&host, name));
    manager.set_provisioned(&f, 1);
    eventually("it is there", || manager.provisioned(&f.key).available == 1).await;
    let running = [begin(&manager, &f, "1"), begin(&manager, &f, "2")];
    eventually("both run", || host.worker.cold_starts().len() == 2).await;
    manager.set_concurrency("g", Concurrency::Reserved(0));
    assert!(invoke(&manager, &g, "3").await.is_err());
    let figures = manager.figures();
    let [of_f, of_g] = &figures.functions[..] else { panic!("{figures:?}") };
    assert_eq!((of_f.name.as_str(), of_g.name.as_str()), ("f", "g"));
    let counts = &of_f.counts;
    assert_eq!((counts.in_flight, counts.peak, counts.invocations, counts.spilled), (2, 2, 2, 1));
    assert_eq!((counts.started_on_demand, counts.started_provisioned, counts.started_prewarm), (1, 1, 0));
    assert_eq!(of_g.counts.throttles.by(ThrottleReason::FunctionConcurrency), 1);
    let environments = of_f.environments();
    assert_eq!((environments.busy, environments.provisioned.allocated, environments.provisioned.available), (2, 1, 0));
    let totals = &figures.totals;
    assert_eq!((totals.in_flight, totals.fleet.environments, figures.waiting()), (2, 2, 0));
    assert_eq!(totals.fleet.memory_mb, 2 * u64::from(f.memory_mb));
    gate.add_permits(2);
    for one in running {
        one.await.expect("no panic").expect("an answer");
    }
    assert_eq!(manager.figures().functions[0].counts.peak, 2, "since the last look");
    assert_eq!(manager.figures().functions[0].counts.peak, 0);
    shut_down(&host, &manager).await;
}

/// The first version of a function with SnapStart.
fn snap_start(host: &Host, name: &str) -> Arc<EnvironmentSpec> {
    let snap_start = Some(SnapshotName::new(format!("{name}-1")));
    Arc::new(EnvironmentSpec { version: "1".to_owned(), snap_start, ..host.spec(name) })
}

fn host_with_snapshots<F>(script: impl Fn(Process) -> F + Send + Sync + 'static) -> Host
where
    F: Future<Output = std::io::Result<Exit>> + Send + 'static,
{
    let freeze_delay = Duration::from_millis(1);
    let options = worker::Options { freeze_delay, provisioned_init_timeout: PATIENCE, ..worker::Options::default() };
    Host::with_snapshots(options, script)
}

#[tokio::test]
async fn environments_out_of_a_snapshot_that_end_are_followed_by_others_and_nothing_is_lost() {
    let host = host_with_snapshots(|mut process: Process| async move {
        process.restore_next().await?;
        let given = process.next().await?;
        if given.payload == "1" {
            return Ok(Exit::Code(3));
        }
        process.respond(&given.request_id, &given.payload).await?;
        process.echo().await
    });
    let manager = manager(&host, Options { max_environments: 2, overlap: 0, ..Options::default() });
    let spec = snap_start(&host, "f");
    assert_eq!(host.worker.take_snapshot(&spec).await, Ok(true));
    for _ in 0..5 {
        let answer = invoke(&manager, &spec, "1").await.unwrap();
        assert!(answer.contains("exit status 3"), "{answer}");
    }
    assert_eq!(invoke(&manager, &spec, "2").await, Ok("2".to_owned()));
    assert_eq!(invoke(&manager, &spec, "1").await, Ok("1".to_owned()));
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_snapshot_is_told_apart_and_not_counted() {
    let host = host_with_snapshots(|mut process: Process| async move {
        process.restore_next().await?;
        process.restore_error("Runtime.AfterRestoreError", r#"{"errorMessage":"no database"}"#).await?;
        process.hang().await
    });
    let manager = manager(&host, Options::default());
    let (kept, unkept) = (snap_start(&host, "f"), snap_start(&host, "g"));
    assert_eq!(host.worker.take_snapshot(&kept).await, Ok(true));
    let failed = invoke(&manager, &kept, "1").await.unwrap_err();
    assert!(matches!(&failed, InvokeError::Restore(_)), "{failed}");
    assert_eq!(failed.to_string(), "Runtime.AfterRestoreError: no database");
    assert_eq!(invoke(&manager, &unkept, "1").await, Err(InvokeError::SnapshotNotReady));
    eventually("it is made meanwhile", || host.backend.saved().names() == ["f-1", "g-1"]).await;
    shut_down(&host, &manager).await;
}

#[tokio::test]
async fn an_initialization_for_a_snapshot_waits_for_its_place_on_the_host() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let host = host_with_snapshots(move |process: Process| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.expect("never closed").forget();
            process.echo().await
        }
    });
    let manager = manager(&host, Options { max_environments: 1, ..Options::default() });
    let (f, g) = (snap_start(&host, "f"), snap_start(&host, "g"));
    let places = || manager.figures().totals.fleet;
    let take = |spec: &Arc<EnvironmentSpec>| {
        let (worker, spec) = (host.worker.clone(), Arc::clone(spec));
        tokio::spawn(async move { worker.take_snapshot(&spec).await })
    };
    let first = take(&f);
    eventually("it initializes", || places().environments == 1).await;
    let second = take(&g);
    eventually("the other one waits", || places().waiting == 1).await;
    eventually("one is made", || host.backend.live() == 1).await;
    gate.add_permits(2);
    assert_eq!(first.await.expect("no panic"), Ok(true));
    assert_eq!(second.await.expect("no panic"), Ok(true));
    eventually("the places are free", || (places().environments, places().waiting) == (0, 0)).await;
    shut_down(&host, &manager).await;
}
