//! What a simulation keeps count of while it runs.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use worker_manager::core::{EnvironmentId, Purpose, SharedFigures, ThrottleReason};

use crate::outcome::{Added, Curves, Outcome};
use crate::policy::Policy;
use crate::statistics::{Holding, Latencies, Memory, Starts, cold_percentages};
use crate::trace::Trace;

#[derive(Debug)]
pub(crate) struct Tally {
    functions: Vec<Function>,
    memory: Memory,
    added: Latencies,
    arrived: u64,
    waits: u64,
    throttles: BTreeMap<ThrottleReason, u64>,
    failures: u64,
    starts: u64,
    prewarms: u64,
}

#[derive(Debug)]
struct Function {
    mib: u32,
    starts: Starts,
    environments: HashMap<EnvironmentId, Environment>,
}

#[derive(Debug, Clone, Copy)]
struct Environment {
    holding: Holding,
    /// Since when it can serve.
    ready: Option<Duration>,
    served: bool,
}

impl Tally {
    pub(crate) fn new(trace: &Trace) -> Self {
        let functions = trace.functions.iter().map(|function| Function {
            mib: function.memory_mib,
            starts: Starts::default(),
            environments: HashMap::new(),
        });
        Self {
            functions: functions.collect(),
            memory: Memory::new(trace.length),
            added: Latencies::default(),
            arrived: 0,
            waits: 0,
            throttles: BTreeMap::new(),
            failures: 0,
            starts: 0,
            prewarms: 0,
        }
    }

    pub(crate) fn arrived(&mut self) {
        self.arrived += 1;
    }

    pub(crate) fn throttled(&mut self, reason: ThrottleReason) {
        *self.throttles.entry(reason).or_default() += 1;
    }

    pub(crate) fn failed(&mut self) {
        self.failures += 1;
    }

    pub(crate) fn started(&mut self, now: Duration, version: u32, id: EnvironmentId, purpose: Purpose) {
        let Some(function) = self.functions.get_mut(version as usize) else { return };
        let new = Environment { holding: Holding::Starting, ready: None, served: false };
        function.environments.insert(id, new);
        self.memory.change(now, function.mib, None, Some(Holding::Starting));
        self.starts += 1;
        match purpose {
            Purpose::OnDemand | Purpose::Provisioned | Purpose::Snapshot => {}
            Purpose::Prewarm => self.prewarms += 1,
        }
    }

    pub(crate) fn ready(&mut self, now: Duration, version: u32, id: EnvironmentId) {
        self.hold(now, version, id, Holding::Idle, |environment| environment.ready = Some(now));
    }

    /// An invocation that arrived at `arrived` goes to an environment.
    pub(crate) fn dispatched(&mut self, now: Duration, version: u32, id: EnvironmentId, arrived: Duration) {
        let mut cold = false;
        self.hold(now, version, id, Holding::Busy, |environment| {
            // It waited for the start, whether or not the start was for its sake.
            cold = !environment.served && environment.ready.is_none_or(|ready| arrived < ready);
            environment.served = true;
        });
        self.added.add(now.saturating_sub(arrived));
        self.waits += u64::from(!cold && now > arrived);
        if let Some(function) = self.functions.get_mut(version as usize) {
            function.starts.served += 1;
            function.starts.cold += u64::from(cold);
        }
    }

    pub(crate) fn answered(&mut self, now: Duration, version: u32, id: EnvironmentId) {
        self.hold(now, version, id, Holding::Idle, |_| {});
    }

    pub(crate) fn gone(&mut self, now: Duration, version: u32, id: EnvironmentId) {
        let Some(function) = self.functions.get_mut(version as usize) else { return };
        if let Some(environment) = function.environments.remove(&id) {
            self.memory.change(now, function.mib, Some(environment.holding), None);
        }
    }

    fn hold(
        &mut self,
        now: Duration,
        version: u32,
        id: EnvironmentId,
        holding: Holding,
        change: impl FnOnce(&mut Environment),
    ) {
        let Some(function) = self.functions.get_mut(version as usize) else { return };
        let Some(environment) = function.environments.get_mut(&id) else { return };
        self.memory.change(now, function.mib, Some(environment.holding), Some(holding));
        environment.holding = holding;
        change(environment);
    }

    /// The trace is over.
    pub(crate) fn close(&mut self, now: Duration) {
        self.memory.advance(now);
    }

    /// Everything that was counted.
    pub(crate) fn outcome(&self, policy: Policy, figures: &SharedFigures, unfinished: u64) -> Outcome {
        let starts: Vec<Starts> = self.functions.iter().map(|function| function.starts).collect();
        let cold = cold_percentages(&starts);
        let quantile = |part| self.added.quantile(part).as_secs_f64() * 1e3;
        let held = self.memory.total();
        let mib_seconds = |mib_micros: u128| mib_micros as f64 / 1e6;
        let (peak_mib, peak_environments) = self.memory.peak();
        Outcome {
            policy: policy.to_string(),
            invocations: self.arrived,
            served: starts.iter().map(|starts| starts.served).sum(),
            cold_starts: starts.iter().map(|starts| starts.cold).sum(),
            waits: self.waits,
            throttles: self.throttles.iter().map(|(reason, count)| (format!("{reason:?}"), *count)).collect(),
            failures: self.failures,
            unfinished,
            added: Added { p50_ms: quantile(0.5), p99_ms: quantile(0.99), p999_ms: quantile(0.999) },
            cold_percent_of_functions_p75: cold
                .get((cold.len() * 3).div_ceil(4).saturating_sub(1))
                .copied()
                .unwrap_or(0.0),
            wasted_mib_seconds: mib_seconds(held.idle),
            used_mib_seconds: mib_seconds(held.busy),
            starting_mib_seconds: mib_seconds(held.starting),
            peak_mib: u64::try_from(peak_mib).unwrap_or(u64::MAX),
            peak_environments,
            starts: self.starts,
            evictions: figures.fleet.evictions,
            prewarms: self.prewarms,
            prewarms_used: figures.prewarms_used,
            left_over: 0,
            curves: Curves {
                cold_of_functions: distribution(&cold),
                idle: self.memory.idle_over_time().into_iter().map(|(hour, mib)| (hour, mib / 1_024.0)).collect(),
                // Less than a millisecond is nothing that anybody waits for.
                slower: self.added.at_least().into_iter().filter(|(millis, _)| *millis >= 1.0).collect(),
            },
        }
    }
}

/// Points of the distribution function of ascending values, in percent; no more of them than a plot can show.
fn distribution(values: &[f64]) -> Vec<(f64, f64)> {
    let of = |index: usize| values.get(index).map(|value| (*value, 100.0 * (index + 1) as f64 / values.len() as f64));
    let step = values.len().div_ceil(400).max(1);
    (step - 1..values.len()).step_by(step).chain(values.len().checked_sub(1)).filter_map(of).collect()
}
