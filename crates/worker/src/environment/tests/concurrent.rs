//! Several invocations at once in one environment, whose Runtime API the host serves or a machine of its own.

use std::sync::Arc;

use tokio::sync::Barrier;

use super::*;
use crate::testing::{Exit, Place, request};

/// A runtime that asks for invocations at two places. What it does with one is its payload: `meet` waits for another
/// invocation that does so too, `hang` never comes back, `exit` ends the process; it answers how often it was started.
async fn two_places(process: Process, met: Arc<Barrier>) -> std::io::Result<Exit> {
    async fn serve(mut place: Place, start: u32, met: Arc<Barrier>) -> std::io::Result<Exit> {
        loop {
            let given = place.next().await?;
            match given.payload.as_str() {
                "\"meet\"" => {
                    met.wait().await;
                }
                "\"hang\"" => std::future::pending().await,
                "\"exit\"" => return Ok(Exit::Code(3)),
                _ => {}
            }
            place.respond(&given.request_id, &format!("[{start},{}]", given.payload)).await?;
        }
    }
    let (one, other) = (process.place(), process.place());
    let start = process.start();
    tokio::select! {
        ended = serve(one, start, Arc::clone(&met)) => ended,
        ended = serve(other, start, met) => ended,
    }
}

/// A host of each kind: its own Runtime API, and one in the sandbox.
fn hosts() -> [Host; 2] {
    let script = || {
        let met = Arc::new(Barrier::new(2));
        move |process| two_places(process, Arc::clone(&met))
    };
    [Host::new(patient(), script()), Host::with_snapshots(patient(), script())]
}

fn spec(host: &Host, timeout: Duration) -> EnvironmentSpec {
    EnvironmentSpec { max_concurrency: 2, timeout, ..host.spec("f") }
}

type Answer = oneshot::Receiver<Result<InvokeReply, StartError>>;

fn hand_in(observed: &Observed, id: &str, payload: &str) -> Answer {
    let (reply, answer) = oneshot::channel();
    observed.environment().invoke(request(id, payload), reply);
    answer
}

async fn answered(answer: Answer) -> InvokeReply {
    timeout(PATIENCE, answer).await.expect("an answer in time").expect("an answer").unwrap()
}

async fn notices(observed: &mut Observed, count: usize) -> Vec<Notice> {
    let mut told = Vec::new();
    for _ in 0..count {
        told.push(observed.notice().await);
    }
    told
}

#[tokio::test]
async fn invocations_run_beside_each_other_and_free_a_slot_each() {
    for host in hosts() {
        let mut observed = Observed::ready(&host, spec(&host, PATIENCE)).await;
        let [one, two] = ["r-1", "r-2"].map(|id| hand_in(&observed, id, "\"meet\""));
        assert_eq!(text(&answered(one).await), "[0,\"meet\"]");
        assert_eq!(text(&answered(two).await), "[0,\"meet\"]");
        let pair = [Notice::Settling, Notice::Idle];
        assert_eq!(notices(&mut observed, 4).await, [pair.clone(), pair].concat());
        // It is frozen when nobody is left, and goes on.
        eventually("it is frozen", || host.backend.frozen() == 1).await;
        assert_eq!(text(&answered(hand_in(&observed, "r-3", "1")).await), "[0,1]");
        notices(&mut observed, 2).await;
        observed.retire(&host).await;
        let log = untimed(&host.log("f").await);
        for id in ["r-1", "r-2", "r-3"] {
            let at = |line: &String| {
                log.iter().position(|found| found == line).unwrap_or_else(|| panic!("{line} in {log:?}"))
            };
            assert!(at(&start_line(id)) < at(&end_line(id)) && at(&end_line(id)) < at(&report_line(id, "")));
        }
        assert!(
            log.iter().position(|line| *line == start_line("r-2"))
                < log.iter().position(|line| *line == end_line("r-1"))
        );
    }
}

#[tokio::test]
async fn no_more_than_its_slots_are_taken() {
    for host in hosts() {
        let mut observed = Observed::ready(&host, spec(&host, PATIENCE)).await;
        let one = hand_in(&observed, "r-1", "\"meet\"");
        let hangs = hand_in(&observed, "r-2", "\"hang\"");
        let refused = timeout(PATIENCE, hand_in(&observed, "r-3", "1")).await.unwrap().unwrap();
        assert_eq!(refused, Err(StartError::Broken("the environment is busy".to_owned())));
        drop((one, hangs));
        // What was in hand ends with it.
        observed.environment().retire();
        let pair = [Notice::Settling, Notice::Idle];
        assert_eq!(notices(&mut observed, 4).await, [pair.clone(), pair].concat());
        assert_eq!(observed.notice().await, Notice::Gone { error: None });
        nothing_left(&host).await;
    }
}

#[tokio::test]
async fn one_that_runs_out_of_time_fails_alone_and_the_process_lives_on() {
    for host in hosts() {
        let mut observed = Observed::ready(&host, spec(&host, Duration::from_millis(300))).await;
        let hangs = hand_in(&observed, "r-1", "\"hang\"");
        assert_eq!(text(&answered(hand_in(&observed, "r-2", "2")).await), "[0,2]");
        let late = answered(hangs).await;
        assert!(late.function_error && text(&late).contains("Task timed out after 0.30 seconds"), "{}", text(&late));
        // The same process, at its other place.
        assert_eq!(text(&answered(hand_in(&observed, "r-3", "3")).await), "[0,3]");
        // Now none is left: the next one finds the runtime started anew.
        let stuck = answered(hand_in(&observed, "r-4", "\"hang\"")).await;
        assert!(text(&stuck).contains("Task timed out"));
        assert_eq!(text(&answered(hand_in(&observed, "r-5", "5")).await), "[1,5]");
        notices(&mut observed, 10).await;
        observed.retire(&host).await;
    }
}

#[tokio::test]
async fn a_process_that_ends_fails_all_and_the_next_invocation_starts_another() {
    for host in hosts() {
        let mut observed = Observed::ready(&host, spec(&host, PATIENCE)).await;
        let hangs = hand_in(&observed, "r-1", "\"hang\"");
        let exits = hand_in(&observed, "r-2", "\"exit\"");
        for (id, answer) in [("r-1", hangs), ("r-2", exits)] {
            let reply = answered(answer).await;
            let expected = format!(
                "{{\"errorMessage\":\"RequestId: {id} Error: Runtime exited with error: exit status 3\",\"errorType\":\"Runtime.ExitError\"}}"
            );
            assert_eq!((text(&reply), reply.function_error), (expected.as_str(), true));
        }
        let [one, two] = ["r-3", "r-4"].map(|id| hand_in(&observed, id, "\"meet\""));
        assert_eq!(text(&answered(one).await), "[1,\"meet\"]");
        assert_eq!(text(&answered(two).await), "[1,\"meet\"]");
        notices(&mut observed, 8).await;
        observed.retire(&host).await;
    }
}

#[tokio::test]
async fn a_first_init_that_failed_is_tried_again_for_those_that_come() {
    let met = Arc::new(Barrier::new(2));
    let host = Host::new(patient(), move |mut process: Process| {
        let met = Arc::clone(&met);
        async move {
            if process.start() == 0 {
                process.init_error("Function.Bad", "{}").await?;
                return Ok(Exit::Code(1));
            }
            two_places(process, met).await
        }
    });
    let mut observed = Observed::start(&host, spec(&host, PATIENCE));
    assert_eq!(observed.notice().await, Notice::Ready { initialized: false });
    let [one, two] = ["r-1", "r-2"].map(|id| hand_in(&observed, id, "\"meet\""));
    assert_eq!(text(&answered(one).await), "[1,\"meet\"]");
    assert_eq!(text(&answered(two).await), "[1,\"meet\"]");
    notices(&mut observed, 4).await;
    observed.retire(&host).await;
}
