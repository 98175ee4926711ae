//! Minutes of virtual time, and what the policies make of them.

use std::collections::BTreeMap;

use super::super::record::{Metric, Resource, Suspended};
use super::*;

fn policy(target_value: f64) -> Policy {
    Policy {
        created: Timestamp(0),
        target_value,
        metric: Metric::Predefined,
        out_cooldown: None,
        in_cooldown: None,
        disable_in: None,
        high_alarm: "h".to_owned(),
        low_alarm: "l".to_owned(),
    }
}

fn target(policies: &[(&str, Policy)]) -> Target {
    Target {
        id: "t".to_owned(),
        resource: Resource::parse("function:f:live").unwrap(),
        min: 2,
        max: 100,
        role: None,
        created: Timestamp(0),
        suspended: Suspended::default(),
        tags: BTreeMap::new(),
        policies: policies.iter().map(|(name, policy)| ((*name).to_owned(), policy.clone())).collect(),
        actions: BTreeMap::new(),
        unsettled: false,
    }
}

/// A target with its tracker, driven second by second.
struct World {
    target: Target,
    tracker: Tracker,
    now: Timestamp,
    capacity: u32,
}

impl World {
    fn new(target: Target, capacity: u32) -> Self {
        Self { target, tracker: Tracker::new(Timestamp(0)), now: Timestamp(0), capacity }
    }

    /// A minute in which so many environments are in use; carries out what is wished.
    fn minute(&mut self, used: u32) -> Option<Wish> {
        let mut wish = None;
        for _ in 0..60 {
            let utilization = f64::from(used.min(self.capacity)) / f64::from(self.capacity);
            if self.tracker.sample(self.now, Some(utilization)) {
                wish = self.tracker.judge(&self.target, self.capacity, self.now);
                if let Some(Wish::Set { desired, .. }) = wish {
                    self.tracker.scaled(self.capacity, desired, self.now);
                    self.capacity = desired;
                }
            }
            self.now.0 += 1_000;
        }
        wish
    }

    fn minutes(&mut self, count: usize, used: u32) -> Vec<u32> {
        (0..count).map(|_| (self.minute(used), self.capacity).1).collect()
    }
}

fn set(desired: u32, alarm: Alarm) -> Option<Wish> {
    Some(Wish::Set { desired, policy: "p".to_owned(), alarm })
}

#[test]
fn three_minutes_above_the_target_scale_out() {
    let mut world = World::new(target(&[("p", policy(0.7))]), 10);
    assert_eq!((world.minute(9), world.minute(9), world.minute(9)), (None, None, None));
    // 9 of 10 in use at a target of 0.7: 13 would be at 0.69.
    assert_eq!(world.minute(9), set(13, Alarm::High));
    // The next point is of the new capacity, and below the target.
    assert_eq!(world.minutes(10, 9), [13; 10]);
}

#[test]
fn a_load_that_fills_everything_scales_out_until_it_fits() {
    let mut world = World::new(target(&[("p", policy(0.5))]), 5);
    let seen = world.minutes(12, 30);
    assert_eq!(seen, [5, 5, 5, 10, 10, 20, 20, 40, 40, 60, 60, 60]);
}

#[test]
fn one_minute_below_begins_the_series_anew() {
    let mut world = World::new(target(&[("p", policy(0.7))]), 10);
    for used in [9, 9, 5, 9, 9, 5, 9, 9, 5] {
        assert_eq!(world.minute(used), None);
    }
}

#[test]
fn fifteen_minutes_below_scale_in_to_what_the_busiest_needs() {
    let mut world = World::new(target(&[("p", policy(0.5))]), 20);
    let mut seen = world.minutes(4, 1);
    seen.extend(world.minutes(1, 4));
    seen.extend(world.minutes(10, 1));
    assert_eq!(seen, [20; 15]);
    // 4 in use, at half: 8.
    assert_eq!(world.minute(1), set(8, Alarm::Low));
    // Not again before there are fifteen minutes of the new capacity; then to the floor.
    assert_eq!(world.minutes(15, 1), [8; 15]);
    assert_eq!(world.minute(1), set(2, Alarm::Low));
    assert_eq!(world.minutes(30, 1), [2; 30]);
}

#[test]
fn between_nine_tenths_and_the_target_nothing_happens() {
    let mut world = World::new(target(&[("p", policy(0.5))]), 100);
    assert_eq!(world.minutes(40, 46), [100; 40]);
}

#[test]
fn bounds_hold_and_say_so() {
    let mut world = World::new(Target { max: 10, ..target(&[("p", policy(0.5))]) }, 10);
    world.minutes(3, 10);
    let reason = NotScaled::AlreadyAtMax { max: 10, current: 10 };
    assert_eq!(world.minute(10), Some(Wish::Stay { policy: "p".to_owned(), alarm: Alarm::High, reason }));
    let mut world = World::new(target(&[("p", policy(0.5))]), 2);
    world.minutes(15, 0);
    let reason = NotScaled::AlreadyAtMin { min: 2, current: 2 };
    assert_eq!(world.minute(0), Some(Wish::Stay { policy: "p".to_owned(), alarm: Alarm::Low, reason }));
}

#[test]
fn the_largest_capacity_wins_and_all_must_agree_to_scale_in() {
    let mut world = World::new(target(&[("a", policy(0.7)), ("b", policy(0.3))]), 10);
    world.minutes(3, 8);
    let wish = world.minute(8);
    assert_eq!(wish, Some(Wish::Set { desired: 27, policy: "b".to_owned(), alarm: Alarm::High }));
    let mut world = World::new(target(&[("a", policy(0.9)), ("b", policy(0.3))]), 10);
    // 0.3 is far below a's target and at b's.
    assert_eq!(world.minutes(30, 3), [10; 30]);
}

#[test]
fn scale_in_can_be_disabled_and_either_way_suspended() {
    let off = Policy { disable_in: Some(true), ..policy(0.5) };
    let mut world = World::new(target(&[("p", off)]), 10);
    assert_eq!(world.minutes(30, 0), [10; 30]);
    let still = Suspended { dynamic_in: true, dynamic_out: true, scheduled: false };
    let mut world = World::new(Target { suspended: still, ..target(&[("p", policy(0.5))]) }, 10);
    assert_eq!(world.minutes(30, 0), [10; 30]);
    assert_eq!(world.minutes(10, 10), [10; 10]);
}

#[test]
fn cooldowns_hold_back_all_but_larger_steps() {
    let slow = Policy { out_cooldown: Some(600), ..policy(0.5) };
    let mut world = World::new(target(&[("p", slow)]), 4);
    // To 8 in the fourth minute; 8 more would be a larger step, so it is taken; 16 to 20 is a smaller one.
    assert_eq!(world.minutes(8, 10), [4, 4, 4, 8, 8, 16, 16, 16]);
    assert_eq!(world.minutes(12, 10).last(), Some(&20));

    let slow = Policy { in_cooldown: Some(1_200), ..policy(0.5) };
    let mut world = World::new(Target { min: 1, ..target(&[("p", slow)]) }, 20);
    world.minutes(14, 4);
    world.minutes(2, 4);
    assert_eq!(world.capacity, 8);
    let later = world.minutes(30, 1);
    let when = later.iter().position(|capacity| *capacity < 8).unwrap();
    assert!((18..=21).contains(&when), "{when}");
}

#[test]
fn a_minute_without_anything_ready_ends_the_series() {
    let mut world = World::new(target(&[("p", policy(0.7))]), 10);
    world.minutes(3, 10);
    for _ in 0..60 {
        world.tracker.sample(world.now, None);
        world.now.0 += 1_000;
    }
    assert_eq!((world.minute(10), world.minute(10), world.minute(10)), (None, None, None));
    assert!(world.minute(10).is_some());
}

#[test]
fn statistics_differ() {
    let customized = |statistic| Metric::Customized { statistic, dimensions: Vec::new(), unit: None };
    for (metric, out) in [
        (Metric::Predefined, false),
        (customized(Statistic::Average), false),
        (customized(Statistic::Minimum), false),
        (customized(Statistic::Maximum), true),
    ] {
        let mut tracker = Tracker::new(Timestamp(0));
        let target = target(&[("p", Policy { metric, ..policy(0.7) })]);
        let mut wish = None;
        for second in 0..=240 {
            let utilization = if second % 60 == 5 { 1.0 } else { 0.1 };
            if tracker.sample(Timestamp(second * 1_000), Some(utilization)) {
                wish = wish.or(tracker.judge(&target, 10, Timestamp(second * 1_000)));
            }
        }
        assert_eq!(wish.is_some(), out);
    }
}
