//! The figures of the moment that `/metrics` shows beside what was counted.

use std::time::Instant;

use telemetry::metrics::{Live, LiveKind, Metrics};

use crate::Deps;

/// Has the rooms asked whenever somebody reads the figures.
pub(crate) fn register(metrics: &Metrics, deps: &Deps, started: Instant) {
    let (control_plane, workers, log_writer) =
        (deps.control_plane.clone(), deps.workers.clone(), deps.log_writer.clone());
    metrics.add_live(move |tell| {
        let gauge = |name, help, value: f64| Live { name, help, kind: LiveKind::Gauge, labels: vec![], value };
        tell(gauge("uptime_seconds", "Since the start of the server", started.elapsed().as_secs_f64()));
        #[expect(clippy::cast_precision_loss, reason = "there are fewer functions than 2^52")]
        tell(gauge("functions", "Functions that there are", control_plane.function_count() as f64));
        tell(gauge("concurrent_executions", "Invocations in flight", f64::from(workers.concurrency())));
        let lost = log_writer.as_ref().map_or(0, aws_client::logs::Writer::lost);
        tell(Live {
            name: "log_events_lost",
            help: "Log events that the Logs endpoint did not take in time",
            kind: LiveKind::Counter,
            labels: vec![],
            value: f64::from(u32::try_from(lost).unwrap_or(u32::MAX)),
        });
    });
}
