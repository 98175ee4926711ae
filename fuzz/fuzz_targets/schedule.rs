//! Schedules of scheduled actions: what is read has its moments on the right side, and no text makes reading panic.

#![no_main]

use control_plane::autoscaling::schedule::{Bounds, Schedule};
use control_plane::record::Timestamp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (String, Option<String>, i64, Option<i64>, Option<i64>)| {
    let (text, zone, now, start, end) = input;
    let Ok(schedule) = Schedule::parse(&text, zone.as_deref()) else { return };
    // Any clock, and any moments that a request may carry.
    let (now, start, end) = (Timestamp(now), start.map(Timestamp), end.map(Timestamp));
    let bounds = Bounds { created: Timestamp(0), start, end };
    assert!(schedule.next(now, bounds).is_none_or(|next| next > now));
    assert!(schedule.last(now, bounds).is_none_or(|last| last <= now));
});
