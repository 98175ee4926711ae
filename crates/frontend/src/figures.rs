//! The figures of the moment that `/metrics` shows beside what was counted.

use telemetry::metrics::{Live, LiveKind};
use worker_manager::{Figures, FunctionReport, ProvisionedStatus, ThrottleReason};

use crate::app::App;

/// Asks the rooms.
pub(crate) fn now(app: &App) -> Vec<Live> {
    let mut told = Vec::new();
    let lost = app.log_writer.as_ref().map_or(0, aws_client::logs::Writer::lost);
    let figures = app.workers.figures();
    let mut one = |name, kind, help, value| told.push(Live { name, help, kind, labels: vec![], value });
    one("uptime_seconds", LiveKind::Gauge, "Since the start of the server", app.started.elapsed().as_secs_f64());
    one("functions", LiveKind::Gauge, "Functions that there are", count(app.control_plane.function_count()));
    one("log_events_lost", LiveKind::Counter, "Log events that the Logs endpoint did not take in time", count(lost));
    of_the_host(&figures, &mut one);
    for (kind, ready) in app.workers.ready() {
        let (help, labels) = ("What is kept ready for cold starts", vec![("kind", kind.to_owned())]);
        told.push(Live { name: "ready", help, kind: LiveKind::Gauge, labels, value: count(ready) });
    }
    of_functions(&figures, &mut |figure| told.push(figure));
    told
}

/// As the text format has numbers. What is counted here stays far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn count(count: impl TryInto<u64>) -> f64 {
    count.try_into().unwrap_or(u64::MAX) as f64
}

fn of_the_host(figures: &Figures, one: &mut dyn FnMut(&'static str, LiveKind, &'static str, f64)) {
    let totals = &figures.totals;
    one("concurrent_executions", LiveKind::Gauge, "Invocations in flight", count(totals.in_flight));
    one("waiting_invocations", LiveKind::Gauge, "Invocations without an environment", count(figures.waiting()));
    let fleet = &totals.fleet;
    one("places_taken", LiveKind::Gauge, "Environments that the host holds", count(fleet.environments));
    one("memory_promised_bytes", LiveKind::Gauge, "Memory promised to environments", count(fleet.memory_mb << 20));
    one("places_waited_for", LiveKind::Gauge, "Environments for which the host has no room", count(fleet.waiting));
    let help = "Idle environments that had to go for others";
    one("evictions", LiveKind::Counter, help, count(fleet.evictions));
    let help = "Environments started ahead of an invocation that came";
    one("prewarms_used", LiveKind::Counter, help, count(totals.prewarms_used));
    let help = "Environments started ahead of an invocation that did not come in time";
    one("prewarms_unused", LiveKind::Counter, help, count(totals.prewarms_unused));
}

/// What the limits are called here. The API has other names, several for the same.
const LIMITS: [(ThrottleReason, &str); 7] = [
    (ThrottleReason::AccountConcurrency, "account-concurrency"),
    (ThrottleReason::FunctionConcurrency, "reserved-concurrency"),
    (ThrottleReason::ScalingRate, "scaling-rate"),
    (ThrottleReason::AccountRate, "account-request-rate"),
    (ThrottleReason::FunctionRate, "reserved-request-rate"),
    (ThrottleReason::MostEnvironments, "execution-environments"),
    (ThrottleReason::HostCapacity, "host-capacity"),
];

/// What a figure of a function is told with.
type Row<'a> = &'a mut dyn FnMut(&[(&'static str, &str)], f64);

fn of_functions(figures: &Figures, tell: &mut dyn FnMut(Live)) {
    use LiveKind::{Counter, Gauge};
    type Rows = fn(&FunctionReport, Row<'_>);
    let metrics: [(&'static str, LiveKind, &'static str, Rows); 9] = [
        ("function_concurrent_executions", Gauge, "Invocations in flight", |function, row| {
            row(&[], count(function.counts.in_flight));
        }),
        ("function_concurrent_executions_peak", Gauge, "The most at once since the last reading", |function, row| {
            row(&[], count(function.counts.peak));
        }),
        ("throttles", Counter, "Invocations that were throttled", |function, row| {
            for (reason, name) in LIMITS {
                row(&[("limit", name)], count(function.counts.throttles.by(reason)));
            }
        }),
        ("environments_started", Counter, "Environments started, by what for", |function, row| {
            let counts = &function.counts;
            row(&[("purpose", "on-demand")], count(counts.started_on_demand));
            row(&[("purpose", "provisioned-concurrency")], count(counts.started_provisioned));
            row(&[("purpose", "prewarm")], count(counts.started_prewarm));
            row(&[("purpose", "snap-start")], count(counts.started_snapshot));
        }),
        ("environments", Gauge, "Environments, by what they do", |function, row| {
            let now = function.environments();
            let states = [
                ("starting", now.wanted + now.starting),
                ("busy", now.busy + now.settling),
                ("idle", now.idle),
                ("leaving", now.leaving),
            ];
            for (state, environments) in states {
                row(&[("state", state)], count(environments));
            }
        }),
        ("provisioned_concurrency_requested", Gauge, "Provisioned environments asked for", |function, row| {
            provisioned(function, row, |provisioned| Some(count(provisioned.requested)));
        }),
        ("provisioned_concurrency_allocated", Gauge, "Provisioned environments that are ready", |function, row| {
            provisioned(function, row, |provisioned| Some(count(provisioned.allocated)));
        }),
        ("provisioned_concurrency_utilization", Gauge, "Part of them that is in use, 0 to 1", |function, row| {
            provisioned(function, row, |provisioned| {
                let busy = provisioned.allocated.saturating_sub(provisioned.available);
                (provisioned.allocated > 0).then(|| f64::from(busy) / f64::from(provisioned.allocated))
            });
        }),
        ("provisioned_concurrency_spillover_invocations", Counter, "Invocations beyond them", |function, row| {
            row(&[], count(function.counts.spilled));
        }),
    ];
    for (name, kind, help, rows) in metrics {
        for function in &figures.functions {
            rows(function, &mut |labels, value| {
                let own = labels.iter().map(|(label, value)| (*label, (*value).to_owned()));
                let labels = std::iter::once(("function", function.name.clone())).chain(own).collect();
                tell(Live { name, help, kind, labels, value });
            });
        }
    }
}

/// One row for each version with provisioned concurrency.
fn provisioned(function: &FunctionReport, row: Row<'_>, value: fn(&ProvisionedStatus) -> Option<f64>) {
    for version in &function.versions {
        let provisioned = &version.now.provisioned;
        if (provisioned.requested > 0 || provisioned.allocated > 0)
            && let Some(value) = value(provisioned)
        {
            row(&[("version", &version.version)], value);
        }
    }
}
