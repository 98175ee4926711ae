//! Schedules: `at(..)`, `rate(..)` and `cron(..)`, as Application Auto Scaling writes them.
//!
//! Pure: moments come in, the moments before and after come out. Wall clocks follow the IANA database that is in the
//! binary. A wall clock time that a change of the clocks skips comes as much later as was skipped, one that comes twice is
//! meant the first time.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp as Instant, Zoned};

use crate::record::Timestamp;

const MINUTE: i64 = 60_000;

/// When something is to happen.
#[derive(Debug, Clone)]
pub struct Schedule {
    kind: Kind,
    zone: TimeZone,
}

#[derive(Debug, Clone)]
enum Kind {
    At(Timestamp),
    /// Milliseconds.
    Rate(i64),
    Cron(Box<Cron>),
}

/// The moments between which a schedule counts, and where a rate begins.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// When the schedule was given.
    pub created: Timestamp,
    pub start: Option<Timestamp>,
    pub end: Option<Timestamp>,
}

/// What is no schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("the schedule is neither at(..), rate(..) nor cron(..)")]
    Kind,
    #[error("the time zone is not one of the IANA database")]
    Zone,
}

impl Schedule {
    /// Reads a schedule; `zone` names that of the wall clock, UTC where absent. A rate has no use for one.
    ///
    /// # Errors
    /// It is none, or there is no such zone.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, ScheduleError> {
        let zone = match zone {
            Some(name) => TimeZone::get(name).map_err(|_| ScheduleError::Zone)?,
            None => TimeZone::UTC,
        };
        let (kind, inner) =
            text.trim().strip_suffix(')').and_then(|text| text.split_once('(')).ok_or(ScheduleError::Kind)?;
        let kind = match kind {
            "at" => at(inner, &zone).map(Kind::At),
            "rate" => rate(inner).map(Kind::Rate),
            "cron" => cron(inner).map(Kind::Cron),
            _ => None,
        };
        Ok(Self { kind: kind.ok_or(ScheduleError::Kind)?, zone })
    }

    /// Whether it comes once only.
    pub fn is_once(&self) -> bool {
        matches!(self.kind, Kind::At(_))
    }

    /// The first moment after `after`.
    pub fn next(&self, after: Timestamp, bounds: Bounds) -> Option<Timestamp> {
        let after = match bounds.start {
            Some(start) if !self.is_once() => after.max(Timestamp(start.0.saturating_sub(1))),
            _ => after,
        };
        let next = match &self.kind {
            Kind::At(moment) => (*moment > after).then_some(*moment),
            Kind::Rate(every) => {
                let first = first(*every, bounds);
                let passed = if after < first { 0 } else { after.0.checked_sub(first.0)? / every + 1 };
                Some(Timestamp(first.0.checked_add(passed.checked_mul(*every)?)?))
            }
            Kind::Cron(cron) => cron.find_next_occurrence(&self.zoned(after)?, false).ok().map(|zoned| moment(&zoned)),
        };
        next.filter(|next| self.is_once() || bounds.end.is_none_or(|end| *next <= end))
    }

    /// The last moment up to `until`, that one included.
    pub fn last(&self, until: Timestamp, bounds: Bounds) -> Option<Timestamp> {
        let until = match bounds.end {
            Some(end) if !self.is_once() => until.min(end),
            _ => until,
        };
        let last = match &self.kind {
            Kind::At(moment) => (*moment <= until).then_some(*moment),
            Kind::Rate(every) => {
                let first = first(*every, bounds);
                (first <= until).then(|| Some(Timestamp(until.0 - until.0.checked_sub(first.0)? % every)))?
            }
            Kind::Cron(cron) => {
                cron.find_previous_occurrence(&self.zoned(until)?, true).ok().map(|zoned| moment(&zoned))
            }
        };
        last.filter(|last| self.is_once() || bounds.start.is_none_or(|start| *last >= start))
    }

    fn zoned(&self, moment: Timestamp) -> Option<Zoned> {
        Some(Instant::from_millisecond(moment.0).ok()?.to_zoned(self.zone.clone()))
    }
}

/// The first moment of a rate: its start, or one period after it was given.
fn first(every: i64, bounds: Bounds) -> Timestamp {
    bounds.start.unwrap_or(Timestamp(bounds.created.0.saturating_add(every)))
}

fn moment(zoned: &Zoned) -> Timestamp {
    Timestamp(zoned.timestamp().as_millisecond())
}

/// `yyyy-mm-ddThh:mm:ss`
fn at(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    let digits = |byte: u8| byte.is_ascii_digit() || b"-T:".contains(&byte);
    let wall: DateTime = text.bytes().all(digits).then(|| text.parse().ok())??;
    (text.len() == "yyyy-mm-ddThh:mm:ss".len()).then_some(())?;
    Some(moment(&zone.to_ambiguous_zoned(wall).compatible().ok()?))
}

/// `5 minutes`; the unit is singular for 1 alone.
fn rate(text: &str) -> Option<i64> {
    let (count, unit) = text.trim().split_once(' ')?;
    let unit = unit.trim_start();
    let count: i64 = count.bytes().all(|byte| byte.is_ascii_digit()).then(|| count.parse().ok())??;
    let single = match unit.strip_suffix('s').unwrap_or(unit) {
        "minute" => MINUTE,
        "hour" => 60 * MINUTE,
        "day" => 24 * 60 * MINUTE,
        _ => return None,
    };
    let matches = (count == 1) != unit.ends_with('s');
    // A century is more than anybody schedules, and keeps all sums in range.
    (count > 0 && matches && count <= 100 * 366).then(|| count * single)
}

/// `minutes hours day-of-month month day-of-week year`; exactly one of the days is `?`.
fn cron(text: &str) -> Option<Box<Cron>> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let [_, _, day, _, weekday, year] = fields.as_slice() else { return None };
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b",-*?/#".contains(&byte);
    let whole = |field: &&str| field.bytes().all(known) && field.split(',').all(|part| !part.is_empty());
    let years = year.split(|byte: char| !byte.is_ascii_digit()).filter(|year| year.len() > 2);
    let mut years = years.map(|year| year.parse::<u16>().unwrap_or_default());
    let zero_day = weekday.split(',').any(|part| part.starts_with('0'));
    if !fields.iter().all(whole)
        || (*day == "?") == (*weekday == "?")
        || fields.iter().enumerate().any(|(at, field)| field.contains('?') && (*field != "?" || !matches!(at, 2 | 4)))
        || years.any(|year| !(1970..=2199).contains(&year))
        || zero_day
    {
        return None;
    }
    let weekday = if *weekday == "L" { "7" } else { weekday };
    let pattern = format!("0 {} {} {day} {} {weekday} {year}", fields[0], fields[1], fields[3]);
    let parser = CronParser::builder()
        .seconds(Seconds::Required)
        .year(Year::Required)
        // Sunday is 1.
        .alternative_weekdays(true)
        .sloppy_ranges(true)
        .build();
    parser.parse(&pattern).ok().map(Box::new)
}

#[cfg(test)]
mod tests;
