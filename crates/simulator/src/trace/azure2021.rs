//! The Azure Functions invocation trace of 2021: one line an invocation.
//!
//! Schema: `app,func,end_timestamp,duration`, times in seconds, `func` unique within its `app` only
//! (<https://github.com/Azure/AzurePublicDataset/blob/master/AzureFunctionsInvocationTrace2021.md>). The trace says
//! nothing of memory, so that is drawn from the published distribution, once for each application.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::Path;
use std::time::Duration;

use super::{Assumptions, Function, Source, Trace, TraceError, burr_memory, clamp_duration};
use crate::random::Random;
use crate::table::{Row, Table};

const COLUMNS: [&str; 4] = ["app", "func", "end_timestamp", "duration"];

/// Reads a trace; invocations that begin after `length` are left out.
///
/// # Errors
/// When the file cannot be read, or a line is not of the schema.
pub fn read(path: &Path, length: Option<Duration>, seed: u64, assumptions: &Assumptions) -> Result<Trace, TraceError> {
    let file = File::open(path).map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
    let mut table = Table::open(path, BufReader::new(file), &COLUMNS)?;
    let mut functions: HashMap<(String, String), Vec<(u64, u32)>> = HashMap::new();
    let mut last = Duration::ZERO;
    while let Some(row) = table.next()? {
        let (at, duration) = invocation(&row)?;
        if length.is_some_and(|length| at >= length) {
            continue;
        }
        last = last.max(at);
        let key = (row.text(0).to_owned(), row.text(1).to_owned());
        functions.entry(key).or_default().push((micros(at), u32::try_from(micros(duration)).unwrap_or(u32::MAX)));
    }
    // The order of the names, not that of a hash table, so that a seed gives the same trace each time.
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));

    let mut random = Random::new(!seed, 0);
    let mut memory_of_app: HashMap<String, u32> = HashMap::new();
    let functions = functions
        .into_iter()
        .map(|((app, func), mut times)| {
            times.sort_unstable();
            let name = format!("{app}/{func}");
            let memory_mib = *memory_of_app.entry(app).or_insert_with(|| burr_memory(&mut random));
            let cold_start = assumptions.cold_start(&mut random);
            Function { name, memory_mib, cold_start, source: Source::Exact(times) }
        })
        .collect();
    Ok(Trace {
        name: path.display().to_string(),
        functions,
        length: length.unwrap_or(last + Duration::from_secs(1)),
        seed,
    })
}

/// Begin and duration.
fn invocation(row: &Row<'_>) -> Result<(Duration, Duration), TraceError> {
    let (end, seconds) = (row.number(2)?, row.number(3)?);
    // A year is more than any trace has; beyond it the number is a mistake.
    const YEAR: f64 = 366.0 * 86_400.0;
    if !(0.0..YEAR).contains(&end) || !(0.0..YEAR).contains(&seconds) {
        return Err(row.error("end_timestamp and duration are seconds from 0 up to a year"));
    }
    // What began before the trace did begins with it.
    let at = Duration::from_secs_f64((end - seconds).max(0.0));
    Ok((at, clamp_duration(seconds)))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Writes the invocations of a trace in this schema, in order of their begin.
///
/// # Errors
/// When `out` cannot be written.
pub fn write(trace: &Trace, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{}", COLUMNS.join(","))?;
    for arrival in trace.arrivals() {
        let name = trace.functions.get(arrival.function as usize).map_or("", |function| function.name.as_str());
        let (app, func) = name.split_once('/').unwrap_or((name, name));
        let end = (arrival.at + arrival.duration).as_secs_f64();
        writeln!(out, "{app},{func},{end:.6},{:.6}", arrival.duration.as_secs_f64())?;
    }
    Ok(())
}
