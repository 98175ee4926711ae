//! Schedules against moments that a calendar gives.

use proptest::prelude::*;

use super::*;

fn moment_of(text: &str) -> Timestamp {
    Timestamp(text.parse::<Instant>().unwrap().as_millisecond())
}

const OPEN: Bounds = Bounds { created: Timestamp(0), start: None, end: None };

/// The next three moments after one.
fn next(text: &str, zone: Option<&str>, after: &str) -> Vec<String> {
    let schedule = Schedule::parse(text, zone).unwrap();
    let mut after = moment_of(after);
    let mut found = Vec::new();
    while found.len() < 3
        && let Some(next) = schedule.next(after, OPEN)
    {
        assert_eq!(schedule.last(next, OPEN), Some(next), "{text}");
        assert!(schedule.last(Timestamp(next.0 - 1), OPEN) < Some(next), "{text}");
        found.push(Instant::from_millisecond(next.0).unwrap().to_string());
        after = next;
    }
    found
}

#[test]
fn at_comes_once_by_the_clock_of_its_zone() {
    let text = "at(2026-07-01T08:30:00)";
    assert_eq!(next(text, None, "2026-01-01T00:00:00Z"), ["2026-07-01T08:30:00Z"]);
    assert_eq!(next(text, Some("Europe/Berlin"), "2026-01-01T00:00:00Z"), ["2026-07-01T06:30:00Z"]);
    assert!(next(text, None, "2026-07-01T08:30:00Z").is_empty());
    // Skipped: half an hour past two does not exist that night.
    let skipped = next("at(2026-03-29T02:30:00)", Some("Europe/Berlin"), "2026-01-01T00:00:00Z");
    assert_eq!(skipped, ["2026-03-29T01:30:00Z"]);
}

#[test]
fn cron_has_six_fields_and_sunday_is_one() {
    let weekdays = next("cron(0 8 ? * MON-FRI *)", None, "2026-11-20T07:59:59Z");
    assert_eq!(weekdays, ["2026-11-20T08:00:00Z", "2026-11-23T08:00:00Z", "2026-11-24T08:00:00Z"]);
    assert_eq!(next("cron(0 8 ? * 2-6 *)", None, "2026-11-20T07:59:59Z"), weekdays);
    assert_eq!(next("cron(0 8 ? * 1 *)", None, "2026-11-20T00:00:00Z")[0], "2026-11-22T08:00:00Z");
    assert_eq!(
        next("cron(0/20 9 1 * ? *)", None, "2026-11-20T00:00:00Z")[..2],
        ["2026-12-01T09:00:00Z", "2026-12-01T09:20:00Z"]
    );
    assert_eq!(next("cron(15 10 ? * 6L 2027)", None, "2026-11-20T00:00:00Z")[0], "2027-01-29T10:15:00Z");
    assert_eq!(next("cron(15 10 ? * 6#3 *)", None, "2026-11-21T00:00:00Z")[0], "2026-12-18T10:15:00Z");
    assert_eq!(
        next("cron(0 0 L * ? *)", None, "2026-11-21T00:00:00Z")[..2],
        ["2026-11-30T00:00:00Z", "2026-12-31T00:00:00Z"]
    );
    assert_eq!(next("cron(0 0 ? * L *)", None, "2026-11-20T00:00:00Z")[0], "2026-11-21T00:00:00Z");
    assert_eq!(next("cron(0 12 1W * ? *)", None, "2026-11-05T00:00:00Z")[0], "2026-12-01T12:00:00Z");
    assert_eq!(next("cron(30 18 * * ? 2026)", None, "2026-12-31T12:00:00Z"), ["2026-12-31T18:30:00Z"]);
}

#[test]
fn cron_follows_the_clock_of_its_zone() {
    let eight = next("cron(0 8 * * ? *)", Some("America/New_York"), "2026-10-31T00:00:00Z");
    assert_eq!(eight, ["2026-10-31T12:00:00Z", "2026-11-01T13:00:00Z", "2026-11-02T13:00:00Z"]);
}

#[test]
fn a_rate_counts_from_its_start_or_from_when_it_was_given() {
    let schedule = Schedule::parse("rate(5 minutes)", None).unwrap();
    let given = Bounds { created: Timestamp(1_000), start: None, end: None };
    assert_eq!(schedule.next(Timestamp(1_000), given), Some(Timestamp(301_000)));
    assert_eq!(schedule.next(Timestamp(301_000), given), Some(Timestamp(601_000)));
    assert_eq!(schedule.last(Timestamp(300_999), given), None);
    assert_eq!(schedule.last(Timestamp(900_999), given), Some(Timestamp(601_000)));
    let bounded = Bounds { start: Some(Timestamp(50_000)), end: Some(Timestamp(700_000)), ..given };
    assert_eq!(schedule.next(Timestamp(1_000), bounded), Some(Timestamp(50_000)));
    assert_eq!(schedule.next(Timestamp(50_000), bounded), Some(Timestamp(350_000)));
    assert_eq!(schedule.next(Timestamp(650_000), bounded), None);
    assert_eq!(schedule.last(Timestamp(9_000_000), bounded), Some(Timestamp(650_000)));
}

#[test]
fn a_recurring_schedule_stays_between_its_start_and_its_end() {
    let schedule = Schedule::parse("cron(0 8 * * ? *)", None).unwrap();
    let bounds = Bounds {
        created: Timestamp(0),
        start: Some(moment_of("2026-05-02T08:00:00Z")),
        end: Some(moment_of("2026-05-04T07:00:00Z")),
    };
    assert_eq!(schedule.next(Timestamp(0), bounds), bounds.start);
    assert_eq!(schedule.next(moment_of("2026-05-03T08:00:00Z"), bounds), None);
    assert_eq!(schedule.last(moment_of("2026-06-01T00:00:00Z"), bounds), Some(moment_of("2026-05-03T08:00:00Z")));
    assert_eq!(schedule.last(moment_of("2026-05-01T12:00:00Z"), bounds), None);
}

#[test]
fn what_is_no_schedule_is_refused() {
    let bad = [
        "",
        "at",
        "at()",
        "at(2026-01-01)",
        "at(2026-13-01T00:00:00)",
        "at(2026-01-01T00:00:00Z)",
        "at(2026-01-01T00:00:00",
        "rate(5)",
        "rate(0 minutes)",
        "rate(1 minutes)",
        "rate(5 minute)",
        "rate(-5 minutes)",
        "rate(5 seconds)",
        "rate(99999999999999 days)",
        "cron(0 8 * * *)",
        "cron(0 8 * * * *)",
        "cron(0 8 ? * ? *)",
        "cron(0 8 * * ? * *)",
        "cron(60 8 * * ? *)",
        "cron(0 8 * 13 ? *)",
        "cron(0 8 ? * 8 *)",
        "cron(0 8 ? * 0 *)",
        "cron(0 8 * * ? 1969)",
        "cron(0 8 * * ? 2200)",
        "cron(? 8 * * ? *)",
        "cron(@daily)",
        "cron(0 8 ? * +MON *)",
        "cron(0 8 ,1 * ? *)",
        "every day",
    ];
    for text in bad {
        assert_eq!(Schedule::parse(text, None).err(), Some(ScheduleError::Kind), "{text}");
    }
    assert_eq!(Schedule::parse("rate(1 minute)", Some("Mars/Olympus")).err(), Some(ScheduleError::Zone));
}

#[test]
fn moments_beyond_all_calendars_are_none() {
    let ends = [Timestamp(i64::MIN), Timestamp(0), Timestamp(i64::MAX)];
    for text in ["rate(1 minute)", "cron(0 8 * * ? *)", "at(2026-07-01T08:30:00)"] {
        let schedule = Schedule::parse(text, None).unwrap();
        for (now, start, end) in ends.iter().flat_map(|a| ends.iter().flat_map(move |b| ends.map(|c| (*a, *b, c)))) {
            let bounds = Bounds { created: start, start: Some(start), end: Some(end) };
            assert!(schedule.next(now, bounds).is_none_or(|next| next > now), "{text}");
            assert!(schedule.last(now, bounds).is_none_or(|last| last <= now), "{text}");
        }
    }
}

#[test]
fn a_day_that_never_comes_has_no_moments() {
    let schedule = Schedule::parse("cron(0 0 30 2 ? *)", None).unwrap();
    assert_eq!(schedule.next(moment_of("2026-01-01T00:00:00Z"), OPEN), None);
    assert_eq!(schedule.last(moment_of("2026-01-01T00:00:00Z"), OPEN), None);
}

proptest! {
    /// Whatever is read, its moments lie where they were looked for.
    #[test]
    fn moments_are_on_their_side(
        text in "(cron\\([0-9*?LW#/, A-C-]{0,12} [0-9*/,-]{1,6} [0-9*?LW]{1,4} [0-9A-Z*/-]{1,6} [0-9?L#SUNFRI-]{1,5} [0-9*/-]{1,9}\\)|at\\([0-9T:-]{0,20}\\)|rate\\([0-9]{1,8} (minute|hours|days)\\)|.{0,40})",
        zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Apia"]),
        now in 1_600_000_000_000_i64..2_500_000_000_000,
        end in prop::option::of(1_600_000_000_000_i64..2_500_000_000_000),
    ) {
        let Ok(schedule) = Schedule::parse(&text, Some(zone)) else { return Ok(()) };
        let (now, end) = (Timestamp(now), end.map(Timestamp));
        let bounds = Bounds { created: Timestamp(0), start: None, end };
        if let Some(next) = schedule.next(now, bounds) {
            prop_assert!(next > now);
            prop_assert_eq!(schedule.last(next, bounds), Some(next));
            prop_assert!(schedule.is_once() || end.is_none_or(|end| next <= end));
        }
        if let Some(last) = schedule.last(now, bounds) {
            prop_assert!(last <= now);
            prop_assert!(schedule.next(last, bounds).is_none_or(|next| next > now || end.is_some_and(|end| now > end)));
        }
    }
}
