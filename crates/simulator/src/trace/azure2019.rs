//! The Azure Functions data set of 2019: invocations per minute, execution times and memory, a file a day for each.
//!
//! Schema: <https://github.com/Azure/AzurePublicDataset/blob/master/AzureFunctionsDataset2019.md>. Memory was measured by
//! application; here each function has the memory of its application, since Lambda's unit is the function.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Assumptions, Durations, Function, Source, Trace, TraceError, burr_memory, clamp_memory};
use crate::random::Random;
use crate::table::{Row, Table};

const INVOCATIONS: &str = "invocations_per_function_md.anon.dXX.csv";
const DURATIONS: &str = "function_durations_percentiles.anon.dXX.csv";
const MEMORY: &str = "app_memory_percentiles.anon.dXX.csv";

const MINUTES_A_DAY: u32 = 1_440;
const DAY: Duration = Duration::from_secs(86_400);

/// The columns with percentiles of the execution time, in milliseconds.
const PERCENTILES: [(&str, f64); 7] = [
    ("percentile_Average_0", 0.0),
    ("percentile_Average_1", 0.01),
    ("percentile_Average_25", 0.25),
    ("percentile_Average_50", 0.5),
    ("percentile_Average_75", 0.75),
    ("percentile_Average_99", 0.99),
    ("percentile_Average_100", 1.0),
];

/// Owner, application and function: the hashes of function names differ between applications.
type Key = (String, String, String);

/// Reads the days that are in the directory, one after the other, up to `length`.
///
/// What the other two sets of files do not say of a function is drawn from the published distributions.
///
/// # Errors
/// When there are no files with invocations, one cannot be read, or a line is not of the schema.
pub fn read(
    directory: &Path,
    length: Option<Duration>,
    seed: u64,
    assumptions: &Assumptions,
) -> Result<Trace, TraceError> {
    let mut days = files(directory, INVOCATIONS)?;
    if days.is_empty() {
        return Err(TraceError::Missing { directory: directory.to_owned(), wanted: INVOCATIONS });
    }
    let needed = length.map_or(usize::MAX, |length| length.as_nanos().div_ceil(DAY.as_nanos()) as usize);
    days.truncate(needed.max(1));

    let mut counts = BTreeMap::new();
    for (day, path) in (0u32..).zip(&days) {
        read_invocations(path, day * MINUTES_A_DAY, &mut counts)?;
    }
    let mut durations = HashMap::new();
    for path in files(directory, DURATIONS)?.iter().take(days.len()) {
        read_durations(path, &mut durations)?;
    }
    let mut memory = HashMap::new();
    for path in files(directory, MEMORY)?.iter().take(days.len()) {
        read_memory(path, &mut memory)?;
    }

    let mut random = Random::new(!seed, 0);
    let functions = counts
        .into_iter()
        .map(|(key, counts)| {
            let durations = durations.remove(&key).unwrap_or_else(|| unknown_durations(&mut random));
            let (owner, app, function) = key;
            let name = format!("{app}/{function}");
            let memory_mib = *memory.entry((owner, app)).or_insert_with(|| burr_memory(&mut random));
            let cold_start = assumptions.cold_start(&mut random);
            Function { name, memory_mib, cold_start, source: Source::PerMinute { counts, durations } }
        })
        .collect();
    let all = DAY * u32::try_from(days.len()).unwrap_or(u32::MAX);
    let length = length.map_or(all, |length| length.min(all));
    Ok(Trace { name: directory.display().to_string(), functions, length, seed })
}

/// The files of one kind, in order of days.
fn files(directory: &Path, pattern: &str) -> Result<Vec<PathBuf>, TraceError> {
    let failed = |source| TraceError::Read { path: directory.to_owned(), source };
    let Some((before, after)) = pattern.split_once("XX") else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let day = name.to_str().and_then(|name| name.strip_prefix(before)?.strip_suffix(after));
        if day.is_some_and(|day| day.len() == 2 && day.bytes().all(|byte| byte.is_ascii_digit())) {
            found.push(entry.path());
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn open(path: &Path, columns: &[&str]) -> Result<Table<BufReader<File>>, TraceError> {
    let file = File::open(path).map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
    Table::open(path, BufReader::with_capacity(1 << 16, file), columns)
}

fn key(row: &Row<'_>) -> Key {
    (row.text(0).to_owned(), row.text(1).to_owned(), row.text(2).to_owned())
}

fn read_invocations(path: &Path, from: u32, all: &mut BTreeMap<Key, Vec<(u32, u32)>>) -> Result<(), TraceError> {
    let minutes: Vec<String> = (1..=MINUTES_A_DAY).map(|minute| minute.to_string()).collect();
    let mut columns = vec!["HashOwner", "HashApp", "HashFunction"];
    let names = columns.len();
    columns.extend(minutes.iter().map(String::as_str));
    let mut table = open(path, &columns)?;
    while let Some(row) = table.next()? {
        let mut found = Vec::new();
        for (minute, column) in (from..).zip(names..columns.len()) {
            let count = row.count(column)?;
            if count > 0 {
                found.push((minute, count));
            }
        }
        // A function has a line for each of its triggers, seldom more than one.
        let counts = all.entry(key(&row)).or_default();
        let sorted = counts.last().is_none_or(|(last, _)| found.first().is_none_or(|(first, _)| last < first));
        counts.append(&mut found);
        if !sorted {
            merge_minutes(counts);
        }
    }
    Ok(())
}

/// Puts minutes in order and adds up what belongs to the same one.
fn merge_minutes(counts: &mut Vec<(u32, u32)>) {
    counts.sort_unstable();
    counts.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 = kept.1.saturating_add(next.1);
        }
        same
    });
}

fn read_durations(path: &Path, all: &mut HashMap<Key, Durations>) -> Result<(), TraceError> {
    let mut columns = vec!["HashOwner", "HashApp", "HashFunction"];
    columns.extend(PERCENTILES.iter().map(|(name, _)| *name));
    let mut table = open(path, &columns)?;
    while let Some(row) = table.next()? {
        let mut points = Vec::with_capacity(PERCENTILES.len());
        let mut least = 0.0_f64;
        for (column, (_, probability)) in (3..).zip(PERCENTILES) {
            // A few were recorded as less than their neighbours, and as negative.
            least = least.max(row.number(column)?);
            points.push((probability, least));
        }
        // The first day that knows a function speaks for all.
        all.entry(key(&row)).or_insert(Durations::Percentiles(points));
    }
    Ok(())
}

fn read_memory(path: &Path, all: &mut HashMap<(String, String), u32>) -> Result<(), TraceError> {
    let mut table = open(path, &["HashOwner", "HashApp", "AverageAllocatedMb"])?;
    while let Some(row) = table.next()? {
        let app = (row.text(0).to_owned(), row.text(1).to_owned());
        let memory = clamp_memory(row.number(2)?);
        all.entry(app).or_insert(memory);
    }
    Ok(())
}

/// Of a function without a line in the durations: the fit over all functions (Shahrad et al., figure 7).
fn unknown_durations(random: &mut Random) -> Durations {
    Durations::LogNormal { median: random.log_normal(-0.38, 2.36) * 1e3, sigma: 0.5 }
}
