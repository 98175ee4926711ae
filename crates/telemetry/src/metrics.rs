//! What is counted and timed, in the text format of Prometheus.
//!
//! What happens (invocations, cold starts) is counted here when it happens. What merely is (environments alive, places taken)
//! is asked of its owner by whoever reads, and comes as [`Live`] figures. The names follow the CloudWatch metrics of Lambda
//! where there is one: `Invocations` is `firelet_invocations_total`, `Duration` is `firelet_duration_seconds`.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::lines::InitType;

/// The media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Before every name.
const PREFIX: &str = "firelet";

/// Upper bounds, in seconds: from a warm invocation of an empty function to the longest that there may be.
const DURATIONS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 900.0];

/// Upper bounds, in seconds, of the phases of a cold start.
const PHASES: [f64; 13] = [0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5, 2.0, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFunction {
    function: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfColdStart {
    function: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    phase: &'static str,
}

/// Everything that is measured in one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    invocations: Family<OfFunction, Counter>,
    errors: Family<OfFunction, Counter>,
    durations: Family<OfFunction, Histogram>,
    cold_starts: Family<OfColdStart, Counter>,
    phases: Family<OfPhase, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let invocations = Family::<OfFunction, Counter>::default();
        registry.register("invocations", "Invocations that reached the function's code", invocations.clone());
        let errors = Family::<OfFunction, Counter>::default();
        registry.register("errors", "Invocations that ended in an error of the function", errors.clone());
        let durations: Family<OfFunction, Histogram> = Family::new_with_constructor(|| Histogram::new(DURATIONS));
        registry.register("duration_seconds", "How long the function's code took", durations.clone());
        let cold_starts = Family::<OfColdStart, Counter>::default();
        registry.register("cold_starts", "Environments that were initialized, by what for", cold_starts.clone());
        let phases: Family<OfPhase, Histogram> = Family::new_with_constructor(|| Histogram::new(PHASES));
        registry.register("cold_start_phase_seconds", "Where the time of cold starts went", phases.clone());
        Self { registry, invocations, errors, durations, cold_starts, phases }
    }

    /// The counters of one function, to be kept by whoever counts: looking them up costs more than counting.
    pub fn function(&self, function: &str) -> FunctionMetrics {
        let of = OfFunction { function: function.to_owned() };
        FunctionMetrics {
            invocations: self.invocations.get_or_create_owned(&of),
            errors: self.errors.get_or_create_owned(&of),
            durations: self.durations.get_or_create_owned(&of),
        }
    }

    /// An environment was initialized.
    pub fn cold_start(&self, function: &str, kind: InitType, phases: &[(&'static str, Duration)]) {
        self.cold_starts.get_or_create(&OfColdStart { function: function.to_owned(), kind: kind.name() }).inc();
        for (phase, took) in phases {
            self.phases.get_or_create(&OfPhase { phase }).observe(took.as_secs_f64());
        }
    }

    /// The function is gone, and what was counted of it.
    pub fn forget(&self, function: &str) {
        let of = OfFunction { function: function.to_owned() };
        self.invocations.remove(&of);
        self.errors.remove(&of);
        self.durations.remove(&of);
        for kind in [InitType::OnDemand, InitType::Provisioned, InitType::SnapStart] {
            self.cold_starts.remove(&OfColdStart { function: function.to_owned(), kind: kind.name() });
        }
    }

    /// Everything, as Prometheus reads it, with the figures of this moment, those of one name one after the other.
    pub fn text(&self, now: Vec<Live>) -> String {
        let mut live = Registry::with_prefix(PREFIX);
        live.register_collector(Box::new(Told(now)));
        let mut text = String::new();
        let written = encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &live))
            .and_then(|()| encode_eof(&mut text));
        debug_assert!(written.is_ok(), "writing to a string does not fail");
        text
    }
}

/// Counters of one function. Cheap to count with: a few atomic steps.
#[derive(Debug, Clone)]
pub struct FunctionMetrics {
    invocations: Counter,
    errors: Counter,
    durations: Histogram,
}

impl FunctionMetrics {
    /// An invocation is over.
    pub fn invoked(&self, took: Duration, failed: bool) {
        self.invocations.inc();
        self.durations.observe(took.as_secs_f64());
        if failed {
            self.errors.inc();
        }
    }
}

/// A figure of the moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Live {
    /// Without the prefix `firelet_`, and without `_total`.
    pub name: &'static str,
    /// For people.
    pub help: &'static str,
    /// Whether it only ever grows.
    pub kind: LiveKind,
    /// What it is of.
    pub labels: Vec<(&'static str, String)>,
    /// How much.
    pub value: f64,
}

/// What a figure does over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveKind {
    /// Goes up and down.
    Gauge,
    /// Only ever grows.
    Counter,
}

#[derive(Debug)]
struct Told(Vec<Live>);

impl Collector for Told {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for same in self.0.chunk_by(|a, b| a.name == b.name) {
            let Some(first) = same.first() else { continue };
            let kind = match first.kind {
                LiveKind::Gauge => MetricType::Gauge,
                LiveKind::Counter => MetricType::Counter,
            };
            let mut metric = encoder.encode_descriptor(first.name, first.help, None, kind)?;
            for figure in same {
                let labels: Vec<(&str, &str)> =
                    figure.labels.iter().map(|(key, value)| (*key, value.as_str())).collect();
                let one = if labels.is_empty() { None } else { Some(metric.encode_family(&labels)?) };
                match (one, figure.kind) {
                    (Some(one), LiveKind::Gauge) => ConstGauge::new(figure.value).encode(one)?,
                    (Some(one), LiveKind::Counter) => ConstCounter::new(figure.value).encode(one)?,
                    (None, LiveKind::Gauge) => metric.encode_gauge(&figure.value)?,
                    (None, LiveKind::Counter) => {
                        metric
                            .encode_counter::<prometheus_client::encoding::NoLabelSet, _, u64>(&figure.value, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_happened() {
        let metrics = Metrics::new();
        let hello = metrics.function("hello");
        hello.invoked(Duration::from_millis(3), false);
        hello.invoked(Duration::from_millis(30), true);
        metrics.cold_start("hello", InitType::OnDemand, &[("sandbox", Duration::from_millis(2))]);
        let text = metrics.text(vec![]);
        for line in [
            "firelet_invocations_total{function=\"hello\"} 2",
            "firelet_errors_total{function=\"hello\"} 1",
            "firelet_duration_seconds_bucket{le=\"0.005\",function=\"hello\"} 1",
            "firelet_duration_seconds_count{function=\"hello\"} 2",
            "firelet_cold_starts_total{function=\"hello\",kind=\"on-demand\"} 1",
            "firelet_cold_start_phase_seconds_count{phase=\"sandbox\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        metrics.forget("hello");
        let text = metrics.text(vec![]);
        assert!(!text.contains("firelet_invocations_total{") && !text.contains("hello"), "{text}");
    }

    #[test]
    fn shows_what_is() {
        let metrics = Metrics::new();
        let figure = |name, kind, labels: &[(&'static str, &str)], value| Live {
            name,
            help: "A figure",
            kind,
            labels: labels.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
            value,
        };
        let text = metrics.text(vec![
            figure("places", LiveKind::Gauge, &[], 7.0),
            figure("throttles", LiveKind::Counter, &[("function", "a\"b"), ("reason", "X")], 2.0),
            figure("throttles", LiveKind::Counter, &[("function", "c"), ("reason", "X")], 3.0),
        ]);
        for line in [
            "# TYPE firelet_places gauge",
            "firelet_places 7.0",
            "# TYPE firelet_throttles counter",
            "firelet_throttles_total{function=\"a\\\"b\",reason=\"X\"} 2.0",
            "firelet_throttles_total{function=\"c\",reason=\"X\"} 3.0",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert_eq!(text.matches("# TYPE firelet_throttles").count(), 1);
    }
}
