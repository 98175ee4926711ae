//! Target tracking: from the utilization of each second to a capacity that brings it back to the target.
//!
//! Pure: utilizations and times come in, a [`Wish`] comes out. Each minute is one point, as CloudWatch has them, and each
//! policy two alarms: the utilization was above the target for three minutes, or below nine tenths of it for fifteen.
//! Minutes in which nothing was ready have no point and end every series.

use std::collections::VecDeque;

use super::record::{NotScaled, Policy, Statistic, Target};
use crate::record::Timestamp;

const MINUTE: i64 = 60_000;

/// Points above the target until a scale-out.
const HIGH_POINTS: usize = 3;
/// Points below [`LOW`] of the target until a scale-in.
const LOW_POINTS: usize = 15;
const LOW: f64 = 0.9;

/// The alarm of a policy that went off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    High,
    Low,
}

/// What the policies of a target ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Another capacity.
    Set { desired: u32, policy: String, alarm: Alarm },
    /// An alarm went off, and there is nothing to be done.
    Stay { policy: String, alarm: Alarm, reason: NotScaled },
}

/// The utilizations of one minute.
#[derive(Debug, Clone, Copy)]
struct Point {
    /// Since the epoch.
    minute: i64,
    count: u32,
    sum: f64,
    least: f64,
    most: f64,
}

impl Point {
    fn value(&self, statistic: Statistic) -> f64 {
        match statistic {
            Statistic::Average => self.sum / f64::from(self.count.max(1)),
            Statistic::Minimum => self.least,
            Statistic::Maximum => self.most,
        }
    }
}

/// The last minutes of a target.
#[derive(Debug)]
pub struct Tracker {
    points: VecDeque<Point>,
    current: Option<Point>,
    /// The last moment at which not everything that was asked for was ready.
    unready: Timestamp,
    /// The last scale-out by a policy, and by how much.
    out: Option<(Timestamp, u32)>,
    /// The last scale-in by a policy, unless a scale-out followed.
    back: Option<Timestamp>,
}

impl Tracker {
    pub fn new(now: Timestamp) -> Self {
        Self { points: VecDeque::new(), current: None, unready: Timestamp(now.0 - 1), out: None, back: None }
    }

    /// Not all environments are there that were asked for, or nobody knows.
    pub fn unready(&mut self, now: Timestamp) {
        self.unready = now;
    }

    /// Takes the utilization of a moment, absent where nothing is ready. True when a minute is over.
    pub fn sample(&mut self, now: Timestamp, utilization: Option<f64>) -> bool {
        let minute = now.0.div_euclid(MINUTE);
        let over = self.current.filter(|current| current.minute != minute);
        if let Some(point) = over {
            self.current = None;
            let follows = self.points.back().is_none_or(|last| last.minute + 1 == point.minute);
            if point.count == 0 || !follows || minute != point.minute + 1 {
                self.points.clear();
            }
            if point.count > 0 {
                self.points.push_back(point);
            }
            while self.points.len() > LOW_POINTS {
                self.points.pop_front();
            }
        }
        let none = Point { minute, count: 0, sum: 0.0, least: f64::INFINITY, most: 0.0 };
        let point = self.current.get_or_insert(none);
        if let Some(value) = utilization {
            point.count += 1;
            point.sum += value;
            point.least = point.least.min(value);
            point.most = point.most.max(value);
        }
        over.is_some()
    }

    /// What the policies make of the minutes so far; asked once a minute. `current` is the capacity as it is set.
    pub fn judge(&self, target: &Target, current: u32, now: Timestamp) -> Option<Wish> {
        // A point from before the last change says nothing of the capacity that is there now.
        if current == 0 || !self.is_fresh(self.points.back()?) {
            return None;
        }
        let policies = target.policies.iter();
        let outs = policies.clone().filter_map(|(name, policy)| Some((self.more(policy, current)?, name)));
        if let Some((desired, policy)) = outs.max_by_key(|(desired, _)| *desired) {
            return self.scale_out(target, current, desired, policy, now);
        }
        // Capacity goes only when all that may take some away agree.
        let ins = policies.filter(|(_, policy)| policy.disable_in != Some(true));
        let ins = ins.map(|(name, policy)| Some((self.less(policy, current)?, name)));
        let ins = ins.collect::<Option<Vec<_>>>()?;
        let (desired, policy) = ins.into_iter().max_by_key(|(desired, _)| *desired)?;
        self.scale_in(target, current, desired, policy, now)
    }

    /// A scale-out or a scale-in by a policy has begun.
    pub fn scaled(&mut self, from: u32, to: u32, now: Timestamp) {
        self.unready = now;
        if to > from {
            self.out = Some((now, to - from));
            self.back = None;
        } else {
            self.back = Some(now);
        }
    }

    /// The capacity that a policy's high alarm asks for, if it is on.
    fn more(&self, policy: &Policy, current: u32) -> Option<u32> {
        let values = self.values(policy, HIGH_POINTS)?;
        let on = values.iter().all(|value| *value > policy.target_value);
        on.then(|| capacity(current, *values.last()?, policy.target_value))?
    }

    /// The capacity that a policy's low alarm asks for, if it is on: enough for the busiest of its minutes.
    fn less(&self, policy: &Policy, current: u32) -> Option<u32> {
        if !self.points.iter().all(|point| self.is_fresh(point)) {
            return None;
        }
        let values = self.values(policy, LOW_POINTS)?;
        let on = values.iter().all(|value| *value < policy.target_value * LOW);
        on.then(|| capacity(current, values.iter().copied().fold(0.0, f64::max), policy.target_value))?
    }

    /// Whether a point is of the capacity that is there now.
    fn is_fresh(&self, point: &Point) -> bool {
        point.minute * MINUTE > self.unready.0
    }

    /// The last values of a policy's metric, if there are as many.
    fn values(&self, policy: &Policy, count: usize) -> Option<Vec<f64>> {
        let from = self.points.len().checked_sub(count)?;
        let statistic = policy.metric.statistic();
        Some(self.points.iter().skip(from).map(|point| point.value(statistic)).collect())
    }

    fn scale_out(&self, target: &Target, current: u32, desired: u32, policy: &str, now: Timestamp) -> Option<Wish> {
        if target.suspended.dynamic_out {
            return None;
        }
        let (policy, alarm) = (policy.to_owned(), Alarm::High);
        let desired = desired.min(target.max);
        if desired <= current {
            let reason = NotScaled::AlreadyAtMax { max: target.max, current };
            return Some(Wish::Stay { policy, alarm, reason });
        }
        let cooldown = target.policies.get(&policy)?.out_cooldown;
        match self.out {
            // Meanwhile only a larger step is taken.
            Some((at, added)) if self.cools(at, cooldown, now) && desired - current <= added => None,
            _ => Some(Wish::Set { desired, policy, alarm }),
        }
    }

    fn scale_in(&self, target: &Target, current: u32, desired: u32, policy: &str, now: Timestamp) -> Option<Wish> {
        if target.suspended.dynamic_in {
            return None;
        }
        let (policy, alarm) = (policy.to_owned(), Alarm::Low);
        let desired = desired.max(target.min);
        if desired >= current {
            let reason = if current <= target.min {
                NotScaled::AlreadyAtMin { min: target.min, current }
            } else {
                NotScaled::AlreadyAtDesired { current }
            };
            return Some(Wish::Stay { policy, alarm, reason });
        }
        let cooldown = target.policies.get(&policy)?.in_cooldown;
        match self.back {
            Some(at) if self.cools(at, cooldown, now) => None,
            _ => Some(Wish::Set { desired, policy, alarm }),
        }
    }

    /// A cooldown begins when the change is complete.
    fn cools(&self, at: Timestamp, seconds: Option<u32>, now: Timestamp) -> bool {
        now.0 - at.max(self.unready).0 < i64::from(seconds.unwrap_or_default()) * 1_000
    }
}

/// The capacity at which this much use would be the target.
fn capacity(current: u32, value: f64, target: f64) -> Option<u32> {
    let exact = f64::from(current) * value / target;
    // What is not a whole number by rounding alone must not cost an environment.
    let whole = (exact - 1e-9).ceil();
    (0.0..=f64::from(u32::MAX)).contains(&whole).then_some(whole as u32)
}

#[cfg(test)]
mod tests;
