//! The machine against single scenarios, and against a plain model under random events.

use proptest::prelude::*;

use super::*;

fn failure(kind: &str) -> Failure {
    Failure { error_type: kind.to_owned(), posted: None, message: "gone".to_owned() }
}

struct Driven {
    machine: Machine,
    now: Instant,
}

impl Driven {
    fn new() -> Self {
        Self { machine: Machine::new(INIT_TIMEOUT, RESTORE_TIMEOUT), now: Instant::now() }
    }

    fn after(&mut self, ms: u64, event: Event) -> Vec<Action> {
        self.now += Duration::from_millis(ms);
        self.machine.step(event, self.now).expect("a legal event")
    }

    fn ready() -> Self {
        let mut driven = Self::new();
        driven.after(0, Event::Begin);
        driven.after(40, Event::InitDone);
        driven
    }

    fn invoke(&mut self, tail: bool) -> Vec<Action> {
        self.after(1, Event::Invoke { timeout: Duration::from_secs(3), tail })
    }
}

#[test]
fn a_first_invocation_reports_the_initialization_and_a_second_one_does_not() {
    let mut driven = Driven::ready();
    driven.invoke(false);
    assert_eq!(driven.after(2, Event::Answered(Answer::Delivered)), [Action::NotifySettling, Action::ReplyAnswer]);
    let end = driven.after(1, Event::Idle);
    assert_eq!(
        end[1],
        Action::LogEnd {
            duration: Duration::from_millis(3),
            before: Some(Before::Init(Duration::from_millis(40))),
            status: Status::Success
        }
    );
    driven.invoke(false);
    driven.after(1, Event::Answered(Answer::Delivered));
    let end = driven.after(0, Event::Idle);
    assert!(matches!(end[1], Action::LogEnd { before: None, .. }));
}

#[test]
fn a_caller_who_wants_the_log_is_answered_after_the_report() {
    let mut driven = Driven::ready();
    driven.invoke(true);
    assert_eq!(driven.after(1, Event::Answered(Answer::Delivered)), [Action::NotifySettling]);
    let end = driven.after(1, Event::Idle);
    let report = end.iter().position(|a| matches!(a, Action::LogEnd { .. }));
    let reply = end.iter().position(|a| *a == Action::ReplyAnswer);
    assert!(report.is_some() && report < reply, "{end:?}");
}

#[test]
fn a_failed_first_initialization_is_done_again_inside_the_first_invocation() {
    let mut driven = Driven::new();
    driven.after(0, Event::Begin);
    let actions = driven.after(5, Event::InitError(failure("Runtime.ImportModuleError")));
    assert!(actions.contains(&Action::Clear { timed_out: false }), "{actions:?}");
    assert_eq!(driven.after(1, Event::Cleared), [Action::NotifyReady { initialized: false }]);
    let actions = driven.invoke(false);
    assert!(actions.contains(&Action::StartProcesses { announce: false }), "{actions:?}");
    let actions = driven.after(5, Event::InitError(failure("Runtime.ImportModuleError")));
    assert!(actions.contains(&Action::ReplyFailure(failure("Runtime.ImportModuleError"))), "{actions:?}");
    assert_eq!(driven.after(1, Event::Cleared), [Action::NotifyIdle]);
    assert!(driven.machine.can_invoke());
}

#[test]
fn an_initialization_that_takes_ten_seconds_is_given_up_and_later_runs_under_the_functions_timeout() {
    let mut driven = Driven::new();
    let actions = driven.after(0, Event::Begin);
    assert_eq!(actions[0], Action::SetDeadline(driven.now + Duration::from_secs(10)));
    let actions = driven.after(10_000, Event::DeadlinePassed);
    assert!(matches!(&actions[0], Action::ReportInit { phase: Phase::Init, status: Status::Timeout, .. }));
    driven.after(1, Event::Cleared);
    let actions = driven.invoke(false);
    assert!(actions.contains(&Action::SetDeadline(driven.now + Duration::from_secs(3))), "{actions:?}");
    let actions = driven.after(3_000, Event::DeadlinePassed);
    assert!(actions.contains(&Action::ReplyTimeout(Duration::from_secs(3))), "{actions:?}");
}

#[test]
fn a_timeout_replies_before_it_clears_and_the_next_invocation_starts_afresh() {
    let mut driven = Driven::ready();
    driven.invoke(false);
    let actions = driven.after(3_000, Event::DeadlinePassed);
    assert_eq!(
        actions[1..],
        [
            Action::Abandon,
            Action::NotifySettling,
            Action::ReplyTimeout(Duration::from_secs(3)),
            Action::Clear { timed_out: true }
        ]
    );
    driven.after(1, Event::Cleared);
    let actions = driven.invoke(false);
    assert!(actions.contains(&Action::StartProcesses { announce: false }), "{actions:?}");
}

#[test]
fn an_answer_that_the_runtime_api_refused_reaches_the_caller_and_the_report() {
    let mut driven = Driven::ready();
    driven.invoke(false);
    let too_large = failure("Function.ResponseSizeTooLarge");
    let actions = driven.after(1, Event::Answered(Answer::Refused(too_large.clone())));
    assert_eq!(actions, [Action::NotifySettling, Action::ReplyFailure(too_large)]);
    let actions = driven.after(1, Event::Idle);
    assert!(
        matches!(&actions[1], Action::LogEnd { status: Status::Error(kind), .. } if kind == "Function.ResponseSizeTooLarge")
    );
}

#[test]
fn a_frozen_environment_is_thawed_before_it_is_handed_an_invocation() {
    let mut driven = Driven::ready();
    assert_eq!(driven.after(10, Event::FreezeDue), [Action::Freeze]);
    assert_eq!(driven.invoke(false)[0], Action::Thaw);
}

#[test]
fn a_busy_environment_is_not_frozen() {
    let mut driven = Driven::ready();
    driven.invoke(false);
    assert_eq!(driven.after(10, Event::FreezeDue), []);
}

#[test]
fn every_initialization_is_reported_and_the_format_decides_who_sees_it() {
    let mut driven = Driven::new();
    driven.after(0, Event::Begin);
    let report = |phase, ms, status| Action::ReportInit { phase, duration: Duration::from_millis(ms), status };
    let actions = driven.after(40, Event::InitDone);
    assert!(actions.contains(&report(Phase::Init, 40, Status::Success)), "{actions:?}");
    driven.after(0, Event::Exited(failure("Runtime.ExitError")));
    driven.after(0, Event::Cleared);
    driven.invoke(false);
    let actions = driven.after(50, Event::InitDone);
    assert_eq!(actions, [report(Phase::Invoke, 50, Status::Success), Action::Deliver]);
}

#[test]
fn what_a_runtime_leaves_behind_that_ends_between_invocations_is_cleared_at_once_and_nobody_is_told() {
    let mut driven = Driven::ready();
    driven.after(10, Event::FreezeDue);
    let actions = driven.after(1, Event::Exited(failure("Runtime.ExitError")));
    assert_eq!(actions, [Action::Clear { timed_out: false }]);
    assert_eq!(driven.after(1, Event::Cleared), []);
    assert!(driven.machine.can_invoke());
    assert!(driven.invoke(false).contains(&Action::StartProcesses { announce: false }));
}

#[test]
fn a_timeout_noticed_late_is_billed_as_the_timeout() {
    let mut driven = Driven::ready();
    driven.invoke(false);
    let actions = driven.after(3_400, Event::DeadlinePassed);
    assert!(
        matches!(&actions[0], Action::LogEnd { duration, status: Status::Timeout, .. } if *duration == Duration::from_secs(3)),
        "{actions:?}"
    );
}

#[test]
fn an_answer_that_was_given_is_reported_as_such_even_if_the_server_ends_before_the_runtime_asks_again() {
    let mut driven = Driven::ready();
    driven.invoke(true);
    driven.after(1, Event::Answered(Answer::Delivered));
    let actions = driven.after(1, Event::Shutdown);
    assert!(matches!(&actions[0], Action::LogEnd { status: Status::Success, .. }), "{actions:?}");
    assert_eq!(actions[1..], [Action::ReplyAnswer, Action::TearDown]);
}

impl Driven {
    /// Released 30 ms after its restore began.
    fn restoring() -> (Self, Vec<Action>) {
        let mut driven = Self::new();
        let began = driven.now;
        let actions = driven.after(30, Event::Restore { began });
        (driven, actions)
    }
}

#[test]
fn a_restore_is_reported_with_what_of_it_is_billed_once() {
    let (mut driven, actions) = Driven::restoring();
    let expected = [Action::SetDeadline(driven.now + RESTORE_TIMEOUT), Action::StartRestore];
    assert_eq!(actions, expected);
    let took = Duration::from_millis(50);
    let expected = [
        Action::ClearDeadline,
        Action::ReportRestore { duration: took, status: Status::Success },
        Action::NotifyReady { initialized: true },
        Action::FreezeSoon,
    ];
    assert_eq!(driven.after(20, Event::InitDone), expected);
    driven.invoke(false);
    driven.after(1, Event::Answered(Answer::Delivered));
    let end = driven.after(0, Event::Idle);
    let before = Some(Before::Restore { took, billed: Duration::from_millis(20) });
    assert!(matches!(&end[1], Action::LogEnd { before: found, .. } if *found == before), "{end:?}");
    driven.invoke(false);
    driven.after(1, Event::Answered(Answer::Delivered));
    assert!(matches!(driven.after(0, Event::Idle)[1], Action::LogEnd { before: None, .. }));
}

#[test]
fn a_restore_that_fails_ends_the_environment_with_its_reason() {
    let hook = || failure("Runtime.AfterRestoreError");
    let report = |ms, status| Action::ReportRestore { duration: Duration::from_millis(ms), status };
    for event in [Event::RestoreError(hook()), Event::Exited(hook())] {
        let (mut driven, _) = Driven::restoring();
        let expected = [
            Action::ClearDeadline,
            report(35, Status::Error("Runtime.AfterRestoreError".to_owned())),
            Action::FailRestore(RestoreFailure::Hook(hook())),
        ];
        assert_eq!(driven.after(5, event), expected);
        assert_eq!(driven.after(0, Event::InitDone), []);
    }
    let (mut driven, _) = Driven::restoring();
    let expected =
        [report(10_030, Status::Timeout), Action::FailRestore(RestoreFailure::Timeout(Duration::from_secs(10)))];
    assert_eq!(driven.after(10_000, Event::DeadlinePassed), expected);
    assert!(!driven.machine.can_invoke());
}

#[test]
fn a_restored_environment_whose_runtime_is_gone_is_not_initialized_again() {
    let ends = [Event::Exited(failure("Runtime.ExitError")), Event::DeadlinePassed];
    for event in ends {
        let (mut driven, _) = Driven::restoring();
        driven.after(1, Event::InitDone);
        driven.invoke(false);
        let actions = driven.after(1, event);
        assert!(matches!(actions.last(), Some(Action::Clear { .. })), "{actions:?}");
        assert_eq!(driven.after(1, Event::Cleared), [Action::TearDown]);
    }
    let (mut driven, _) = Driven::restoring();
    driven.after(1, Event::InitDone);
    driven.after(1, Event::Exited(failure("Runtime.ExitError")));
    assert_eq!(driven.after(1, Event::Cleared), [Action::TearDown]);
}

#[test]
fn several_invocations_are_one_to_the_machine() {
    let mut driven = Driven::ready();
    assert!(driven.machine.can_serve());
    assert_eq!(driven.after(1, Event::FreezeDue), [Action::Freeze]);
    assert_eq!(driven.after(1, Event::Serve), [Action::Thaw, Action::Admit]);
    assert_eq!(driven.after(1, Event::Serve), [Action::Admit]);
    assert!(driven.machine.can_serve() && !driven.machine.can_invoke());
    assert_eq!(driven.after(1, Event::FreezeDue), []);
    assert_eq!(driven.after(1, Event::Free), [Action::FreezeSoon]);
    assert_eq!(driven.after(1, Event::Serve), [Action::Admit]);
    let gone = failure("Runtime.ExitError");
    let failed = [Action::FailAll(gone.clone()), Action::Clear { timed_out: false }];
    assert_eq!(driven.after(1, Event::Exited(gone.clone())), failed);
    assert_eq!(driven.after(0, Event::Free), []);
    assert_eq!(driven.after(1, Event::Cleared), []);
    // The next one initializes again, and others may come meanwhile, or run out of time.
    let again = driven.after(1, Event::Serve);
    assert!(matches!(again[..], [Action::Thaw, Action::SetDeadline(_), Action::StartProcesses { announce: false }]));
    assert_eq!(driven.after(1, Event::Serve), []);
    assert_eq!(driven.after(1, Event::Free), []);
    let done = driven.after(1, Event::InitDone);
    let report =
        Action::ReportInit { phase: Phase::Invoke, duration: Duration::from_millis(3), status: Status::Success };
    assert_eq!(done, [Action::ClearDeadline, report, Action::Admit]);
    let ended = driven.after(1, Event::Shutdown);
    assert!(
        matches!(&ended[..], [Action::FailAll(failure), Action::TearDown] if failure.error_type == "Sandbox.Failure")
    );
}

#[test]
fn an_initialization_for_several_that_fails_fails_them_all() {
    for event in [Event::InitError(failure("Function.Bad")), Event::DeadlinePassed] {
        let mut driven = Driven::new();
        driven.after(0, Event::Begin);
        driven.after(1, Event::InitError(failure("Function.Bad")));
        assert_eq!(driven.after(1, Event::Cleared), [Action::NotifyReady { initialized: false }]);
        driven.after(1, Event::Serve);
        let actions = driven.after(1, event);
        assert!(matches!(&actions[actions.len() - 2..], [Action::FailAll(_), Action::Clear { .. }]), "{actions:?}");
        driven.after(1, Event::Cleared);
        assert!(driven.machine.can_serve());
    }
}

/// What may be seen from outside, kept without any knowledge of the machine's states.
#[derive(Default)]
struct Observed {
    invoked: u32,
    replied: u32,
    started: u32,
    ended_logs: u32,
    running: bool,
    settling: bool,
    frozen: bool,
    offered: bool,
    clearing: bool,
    down: bool,
}

impl Observed {
    fn take(&mut self, actions: &[Action]) {
        for action in actions {
            assert!(!self.down, "an action after the end: {action:?}");
            match action {
                Action::StartProcesses { .. } => {
                    assert!(!self.running && !self.clearing, "a second runtime beside a live one");
                    assert!(!self.frozen, "a runtime started in a frozen sandbox");
                    self.running = true;
                }
                Action::LogStart => {
                    self.started += 1;
                    self.settling = false;
                }
                Action::LogEnd { .. } => self.ended_logs += 1,
                Action::Deliver => assert!(self.running && !self.frozen, "an invocation for a runtime that cannot run"),
                Action::ReplyAnswer | Action::ReplyFailure(_) | Action::ReplyTimeout(_) => {
                    assert!(self.settling, "a caller was answered while the manager took the environment for busy");
                    self.replied += 1;
                }
                Action::NotifySettling => {
                    assert!(!self.settling, "the manager was told twice");
                    self.settling = true;
                }
                Action::NotifyReady { .. } | Action::NotifyIdle => self.offered = true,
                Action::Freeze => {
                    assert!(self.offered, "a busy environment was frozen");
                    self.frozen = true;
                }
                Action::Thaw => self.frozen = false,
                Action::Clear { .. } => {
                    self.running = false;
                    self.clearing = true;
                }
                Action::TearDown | Action::FailRestore(_) => self.down = true,
                Action::StartRestore => self.running = true,
                Action::SetDeadline(_)
                | Action::ClearDeadline
                | Action::ReportInit { .. }
                | Action::ReportRestore { .. }
                | Action::Abandon
                | Action::Admit
                | Action::FailAll(_)
                | Action::StartRuntime
                | Action::FreezeSoon => {}
            }
            assert!(self.replied <= self.invoked, "an invocation was answered twice");
            assert!(self.ended_logs <= self.started, "an invocation was logged as ended twice");
        }
    }
}

fn any_event() -> impl Strategy<Value = u8> {
    0u8..10
}

proptest! {
    #[test]
    fn every_invocation_is_answered_once_whatever_happens(
        events in prop::collection::vec((any_event(), 0u64..5_000, any::<bool>()), 0..80),
        restored in any::<bool>(),
    ) {
        let mut driven = Driven::new();
        let mut seen = Observed::default();
        let began = driven.now;
        seen.take(&driven.after(0, if restored { Event::Restore { began } } else { Event::Begin }));
        for (kind, wait, tail) in events {
            let event = match kind {
                0 => Event::InitDone,
                1 if matches!(driven.machine.state, State::Restoring { .. }) => {
                    Event::RestoreError(failure("Runtime.Unknown"))
                }
                1 => Event::InitError(failure("Runtime.Unknown")),
                2 | 3 => Event::Invoke { timeout: Duration::from_secs(1), tail },
                4 => Event::Answered(if tail { Answer::Delivered } else { Answer::Refused(failure("Function.Unknown")) }),
                5 => Event::Idle,
                6 => Event::Exited(failure("Runtime.ExitError")),
                7 => Event::DeadlinePassed,
                8 => Event::FreezeDue,
                _ => Event::Cleared,
            };
            // The owner's part of the contract: events that it sends only when they can be.
            let possible = match &event {
                Event::Invoke { .. } => seen.offered && driven.machine.can_invoke(),
                Event::Cleared => seen.clearing,
                Event::InitDone | Event::InitError(_) => {
                    seen.running && matches!(driven.machine.state, State::Initializing { .. } | State::Restoring { .. })
                }
                Event::Answered(_) => matches!(driven.machine.state, State::Invoking(_)),
                Event::Exited(_) => seen.running,
                _ => true,
            };
            if !possible {
                continue;
            }
            match &event {
                Event::Invoke { .. } => {
                    seen.invoked += 1;
                    seen.offered = false;
                }
                Event::Cleared => seen.clearing = false,
                Event::Exited(_) => seen.running = false,
                _ => {}
            }
            seen.take(&driven.after(wait, event));
        }
        if !seen.down {
            seen.take(&driven.after(0, Event::Shutdown));
        }
        prop_assert!(seen.down);
        prop_assert_eq!(seen.replied, seen.invoked);
        prop_assert_eq!(seen.started, seen.ended_logs);
        prop_assert_eq!(driven.after(0, Event::Idle), vec![]);
    }
}
