//! Names and times in log streams.

use time::macros::format_description;
use time::{OffsetDateTime, UtcDateTime};
use uuid::Uuid;

/// The log group of a function that names none: `/aws/lambda/NAME`.
#[must_use]
pub fn log_group(function_name: &str) -> String {
    format!("/aws/lambda/{function_name}")
}

/// The log stream of an environment: `YYYY/MM/DD/[VERSION]HEX`, or `YYYY/MM/DD/FUNCTION[VERSION]HEX` in a log group that
/// the function chose itself. `created_ms` is when the environment came to be, Unix time; `id` names it.
#[must_use]
pub fn stream_name(created_ms: i64, custom_group_function: Option<&str>, version: &str, id: Uuid) -> String {
    let date = utc(created_ms).date();
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let function = custom_group_function.unwrap_or_default();
    format!("{year:04}/{month:02}/{day:02}/{function}[{version}]{}", id.simple())
}

pub(super) fn iso_time(time_ms: i64) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    // Cannot fail: every component of the format is one that a date with a time has.
    utc(time_ms).format(format).unwrap_or_default()
}

/// Times outside the years that a calendar can write become the epoch: they are nonsense to begin with.
fn utc(time_ms: i64) -> UtcDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(time_ms) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .to_utc()
}
