//! Traces read, made, sampled and written.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn generated(functions: u32, seed: u64) -> Trace {
    generated::generate(&generated::Options {
        functions,
        length: 24 * HOUR,
        max_rate: 0.02,
        seed,
        assumptions: Assumptions::default(),
    })
}

fn exact(functions: Vec<Vec<(u64, u32)>>) -> Trace {
    let function = |(index, times)| Function {
        name: format!("app/f{index}"),
        memory_mib: 128,
        cold_start: Duration::from_millis(200),
        source: Source::Exact(times),
    };
    Trace {
        name: "exact".into(),
        functions: functions.into_iter().enumerate().map(function).collect(),
        length: HOUR,
        seed: 1,
    }
}

fn per_function(trace: &Trace) -> Vec<u64> {
    let mut counts = vec![0; trace.functions.len()];
    for arrival in trace.arrivals() {
        counts[arrival.function as usize] += 1;
    }
    counts
}

#[test]
fn arrivals_are_merged_in_order_of_time_and_end_with_the_trace() {
    let trace = exact(vec![vec![(5, 1_000), (9, 2_000), (3_600_000_000, 1)], vec![(5, 3_000), (7, 4_000)]]);
    let found: Vec<_> =
        trace.arrivals().map(|a| (a.at.as_micros() as u64, a.function, a.duration.as_micros() as u32)).collect();
    assert_eq!(found, [(5, 0, 1_000), (5, 1, 3_000), (7, 1, 4_000), (9, 0, 2_000)]);
}

#[test]
fn a_generated_trace_is_the_same_for_the_same_seed_and_ascends() {
    let collect = |seed| generated(50, seed).arrivals().take(5_000).collect::<Vec<_>>();
    let one = collect(1);
    assert!(one.is_sorted_by_key(|arrival| arrival.at));
    assert_eq!(one, collect(1));
    assert_ne!(one, collect(2));
}

#[test]
fn a_function_is_invoked_alike_whatever_others_there_are() {
    let times = |functions| {
        let trace = generated(functions, 1);
        trace.arrivals().filter(|a| a.function == 3).map(|a| a.at).collect::<Vec<_>>()
    };
    assert_eq!(times(10), times(40));
}

#[test]
fn generated_functions_have_the_published_popularity_memory_and_durations() {
    let trace = generated(2_000, 1);
    let part = |wanted: &dyn Fn(&Function) -> bool| {
        trace.functions.iter().filter(|f| wanted(f)).count() as f64 / trace.functions.len() as f64
    };
    let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 0.05, "{found} is not near {wanted}");
    near(part(&|f| f.name.starts_with("timer-")), 0.156);
    near(part(&|f| f.name.starts_with("http-")), 0.55);
    // The Burr fit: half of the applications take up to 140 MiB, nine of ten up to 262.
    near(part(&|f| f.memory_mib <= 140), 0.5);
    near(part(&|f| f.memory_mib <= 262), 0.9);
    // The log-normal fit: a little more than half of the functions run less than a second.
    let short = |f: &Function| match &f.source {
        Source::Process { durations: Durations::LogNormal { median, .. }, .. } => *median < 1_000.0,
        Source::Process { .. } | Source::Exact(_) | Source::PerMinute { .. } => false,
    };
    near(part(&short), 0.59);

    // Timers apart, whose periods are another matter.
    let counts: Vec<u64> = (trace.functions.iter().zip(per_function(&trace)))
        .filter(|(function, _)| !function.name.starts_with("timer-"))
        .map(|(_, count)| count)
        .collect();
    let at_most = |limit| counts.iter().filter(|count| **count <= limit).count() as f64 / counts.len() as f64;
    near(at_most(24), 0.45);
    near(at_most(1_440), 0.81);
}

#[test]
fn timers_keep_their_period() {
    let trace = generated(200, 1);
    let timer = trace.functions.iter().position(|f| f.name.starts_with("timer-")).unwrap() as u32;
    let times: Vec<_> = trace.arrivals().filter(|a| a.function == timer).map(|a| a.at).collect();
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| *gap == gaps[0]), "{gaps:?}");
    assert_eq!(gaps[0].as_secs() % 60, 0);
}

#[test]
fn durations_stay_within_what_a_function_may_take() {
    let mut random = Random::new(1, 1);
    assert_eq!(Durations::Percentiles(vec![(0.0, 1e12)]).draw(&mut random), LONGEST);
    assert_eq!(Durations::Percentiles(vec![(0.0, -5.0)]).draw(&mut random), SHORTEST);
    assert_eq!(Durations::LogNormal { median: f64::NAN, sigma: 1.0 }.draw(&mut random), SHORTEST);
    let percentiles = Durations::Percentiles(vec![(0.0, 100.0), (1.0, 200.0)]);
    let drawn = percentiles.draw(&mut random).as_millis();
    assert!((100..=200).contains(&drawn), "{drawn}");
}

#[test]
fn a_sample_has_as_many_functions_as_asked_for_in_their_order() {
    let names = |trace: &Trace| trace.functions.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
    let mut trace = generated(100, 1);
    let all = names(&trace);
    trace.sample(10);
    let some = names(&trace);
    assert_eq!(some.len(), 10);
    let mut rest = all.iter();
    assert!(some.iter().all(|name| rest.any(|other| other == name)), "{some:?}");
    trace.sample(1_000);
    assert_eq!(names(&trace), some);
}

#[test]
fn the_schema_of_2021_is_read_and_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.csv");
    fs::write(
        &path,
        "app,func,end_timestamp,duration\n\
         b,f,12.5,2.5\n\
         a,f,5160.25,0.25\n\
         b,f,3.0,0\n\
         a,g,1.0,4000\n",
    )
    .unwrap();
    let trace = azure2021::read(&path, None, 1, &Assumptions::default()).unwrap();
    let names: Vec<_> = trace.functions.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["a/f", "a/g", "b/f"]);
    assert_eq!(trace.functions[0].memory_mib, trace.functions[1].memory_mib, "memory is by application");
    let found: Vec<_> = trace.arrivals().map(|a| (a.at.as_millis(), a.function, a.duration.as_millis())).collect();
    // What began before the trace begins with it; what lasts too long is cut off; what lasts nothing lasts a little.
    assert_eq!(found, [(0, 1, 900_000), (3_000, 2, 1), (10_000, 2, 2_500), (5_160_000, 0, 250)]);

    let mut written = Vec::new();
    azure2021::write(&trace, &mut written).unwrap();
    fs::write(&path, &written).unwrap();
    let again = azure2021::read(&path, None, 1, &Assumptions::default()).unwrap();
    assert_eq!(again.arrivals().collect::<Vec<_>>(), trace.arrivals().collect::<Vec<_>>());

    let cut = azure2021::read(&path, Some(Duration::from_secs(10)), 1, &Assumptions::default()).unwrap();
    assert_eq!(cut.arrivals().count(), 2);
}

#[test]
fn a_line_that_is_not_of_the_schema_is_refused_with_its_number() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.csv");
    let refused = |text: &str| {
        fs::write(&path, text).unwrap();
        let error = azure2021::read(&path, None, 1, &Assumptions::default()).unwrap_err();
        error.to_string().rsplit_once("trace.csv").unwrap().1.to_owned()
    };
    let heading = "app,func,end_timestamp,duration";
    assert_eq!(refused("app,func,duration\n"), ", line 1: the heading has no column end_timestamp");
    assert_eq!(refused(&format!("{heading}\na,b,1,1\na,b,x,1\n")), ", line 3: \"x\" is not a number");
    assert_eq!(refused(&format!("{heading}\na,b,inf,1\n")), ", line 2: \"inf\" is not a number");
    assert_eq!(refused(&format!("{heading}\na,b,1\n")), ", line 2: the line has fewer columns than the heading");
    assert_eq!(
        refused(&format!("{heading}\na,b,-1,1\n")),
        ", line 2: end_timestamp and duration are seconds from 0 up to a year"
    );
    assert_eq!(
        refused(&format!("{heading}\n{}\n", "a".repeat(70_000))),
        ", line 2: the line is longer than 65536 bytes"
    );
}

/// Two days: `hot` at minutes 1 and 1440 of the first and minute 2 of the second, `rare` on the second only.
fn write_2019(directory: &Path) {
    let heading = |names: &str| (1..=1_440).fold(names.to_owned(), |text, minute| format!("{text},{minute}"));
    let line = |names: &str, counts: &[(usize, u32)]| {
        let mut minutes = vec![0; 1_440];
        for (minute, count) in counts {
            minutes[minute - 1] = *count;
        }
        minutes.iter().fold(names.to_owned(), |text, count| format!("{text},{count}"))
    };
    let names = "HashOwner,HashApp,HashFunction,Trigger";
    let day = |lines: &[String]| format!("{}\n{}\n", heading(names), lines.join("\n"));
    let write = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
    write(
        "invocations_per_function_md.anon.d01.csv",
        day(&[line("o,a,hot,http", &[(1, 3), (1_440, 1)]), line("o,a,hot,queue", &[(1, 2)])]),
    );
    write(
        "invocations_per_function_md.anon.d02.csv",
        day(&[line("o,a,hot,http", &[(2, 1)]), line("o,b,rare,timer", &[(1, 1)])]),
    );
    let percentiles = "percentile_Average_0,percentile_Average_1,percentile_Average_25,percentile_Average_50,\
                       percentile_Average_75,percentile_Average_99,percentile_Average_100";
    write(
        "function_durations_percentiles.anon.d01.csv",
        format!(
            "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum,{percentiles}\n\
             o,a,hot,50,6,-1,90,40,40,40,30,60,60,60\n"
        ),
    );
    write(
        "app_memory_percentiles.anon.d01.csv",
        "HashOwner,HashApp,SampleCount,AverageAllocatedMb,AverageAllocatedMb_pct1\no,a,9,170.2,1\n".into(),
    );
    write("README.md", "not a day".into());
}

#[test]
fn the_schema_of_2019_is_read() {
    let directory = tempfile::tempdir().unwrap();
    write_2019(directory.path());
    let trace = azure2019::read(directory.path(), None, 1, &Assumptions::default()).unwrap();
    assert_eq!(trace.length, Duration::from_secs(2 * 86_400));
    let names: Vec<_> = trace.functions.iter().map(|f| (f.name.as_str(), f.memory_mib)).collect();
    assert_eq!(names[0], ("a/hot", 171));
    assert_eq!(names[1].0, "b/rare");

    let minutes: Vec<_> = trace.arrivals().map(|a| (a.at.as_secs() / 60, a.function)).collect();
    assert_eq!(minutes, [(0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (1_439, 0), (1_440, 1), (1_441, 0)]);
    for arrival in trace.arrivals().filter(|a| a.function == 0) {
        // A percentile that is below its neighbour is taken for its neighbour.
        assert!((40..=60).contains(&arrival.duration.as_millis()), "{arrival:?}");
    }

    let first = azure2019::read(directory.path(), Some(HOUR), 1, &Assumptions::default()).unwrap();
    assert_eq!((first.length, first.functions.len(), first.arrivals().count()), (HOUR, 1, 5));
}

#[test]
fn the_invocations_of_a_minute_are_spread_over_it() {
    let mut trace = exact(vec![vec![]]);
    let durations = Durations::LogNormal { median: 5.0, sigma: 0.0 };
    trace.functions[0].source = Source::PerMinute { counts: vec![(3, 6_000), (5, 1)], durations };
    let times: Vec<_> = trace.arrivals().map(|arrival| arrival.at.as_secs_f64()).collect();
    assert_eq!(times.len(), 6_001);
    assert!(times.is_sorted());
    assert!((300.0..360.0).contains(&times[6_000]));
    for second in 180..240 {
        let within = times.iter().filter(|at| (f64::from(second)..f64::from(second + 1)).contains(*at)).count();
        assert!((50..150).contains(&within), "{within} in second {second}");
    }
}

#[test]
fn a_directory_without_the_data_set_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let error = azure2019::read(directory.path(), None, 1, &Assumptions::default()).unwrap_err().to_string();
    assert!(error.starts_with("no invocations_per_function_md.anon.dXX.csv in "), "{error}");
    assert!(error.ends_with("; unpack the whole Azure Functions data set of 2019 there"), "{error}");
}

/// docs/simulation.md says how the small trace was made: whoever changes the generator sees that here, and makes it again.
#[test]
fn the_small_trace_is_what_the_generator_makes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/small.csv");
    let kept = azure2021::read(&path, None, 3, &Assumptions::default()).unwrap();
    let made = generated::generate(&generated::Options {
        functions: 40,
        length: 8 * HOUR,
        max_rate: 0.004,
        seed: 3,
        assumptions: Assumptions::default(),
    });
    let micros = |trace: &Trace| {
        let named = |a: Arrival| (trace.functions[a.function as usize].name.clone(), a.at.as_micros() as i64);
        trace.arrivals().map(named).collect::<Vec<_>>()
    };
    let (kept, made) = (micros(&kept), micros(&made));
    assert_eq!(kept.len(), made.len());
    for ((kept, at), (made, wanted)) in kept.iter().zip(&made) {
        assert_eq!(*kept, format!("{made}/{made}"));
        // The file has whole microseconds, and mathematical libraries differ in the last digit.
        assert!((at - wanted).abs() < 1_000, "{kept} at {at}, not at {wanted}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(
        lines in prop::collection::vec("[-0-9a-z.,+]{0,40}", 0..8),
        numbers in prop::collection::vec(("[a-c]", "[a-c]", any::<f64>(), any::<f64>()), 0..8),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.csv");
        let numbers = numbers.iter().map(|(app, func, end, duration)| format!("{app},{func},{end},{duration}"));
        let text: Vec<String> =
            std::iter::once("app,func,end_timestamp,duration".to_owned()).chain(numbers).chain(lines).collect();
        fs::write(&path, text.join("\n")).unwrap();
        if let Ok(trace) = azure2021::read(&path, None, 1, &Assumptions::default()) {
            prop_assert!(trace.arrivals().all(|arrival| arrival.duration >= SHORTEST && arrival.duration <= LONGEST));
        }
    }
}
