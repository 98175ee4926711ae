//! The plot of some outcomes, and of none.

use std::collections::BTreeMap;

use super::*;
use crate::outcome::{Added, Curves};

fn outcome(policy: &str, cold_starts: u64) -> Outcome {
    Outcome {
        policy: policy.into(),
        invocations: 100,
        served: 100,
        cold_starts,
        waits: 0,
        throttles: BTreeMap::new(),
        failures: 0,
        unfinished: 0,
        added: Added::default(),
        cold_percent_of_functions_p75: 10.0,
        wasted_mib_seconds: 0.0,
        used_mib_seconds: 0.0,
        starting_mib_seconds: 0.0,
        peak_mib: 0,
        peak_environments: 0,
        starts: 0,
        evictions: 0,
        prewarms: 0,
        prewarms_used: 0,
        left_over: 0,
        curves: Curves {
            cold_of_functions: vec![(0.0, 50.0), (100.0, 100.0)],
            idle: vec![(0.0, 1.0), (12.0, 3.0), (24.0, f64::NAN)],
            slower: vec![(0.0, 100.0), (0.1, 10.0), (1_000.0, 0.01)],
        },
    }
}

/// The attributes of every element of a kind.
fn attributes<'a>(svg: &'a str, element: &str, attribute: &str) -> Vec<&'a str> {
    let begin = format!("{attribute}=\"");
    svg.lines()
        .filter(|line| line.starts_with(&format!("<{element} ")))
        .filter_map(|line| line.split_once(&begin)?.1.split_once('"'))
        .map(|(value, _)| value)
        .collect()
}

#[test]
fn every_policy_has_a_line_in_each_chart_and_everything_is_on_the_page() {
    let svg = svg("a <trace> & more", &[outcome("fixed:10m", 10), outcome("histogram", 5)]);
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(svg.contains(">a &lt;trace&gt; &amp; more</text>"));
    assert!(svg.contains(">fixed:10m</text>") && svg.contains(">histogram</text>"));
    let lines = attributes(&svg, "polyline", "points");
    assert_eq!(lines.len(), 6);
    for points in &lines {
        for point in points.split(' ') {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((0.0..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y), "{point}");
        }
    }
    // What is no number and what a logarithm cannot show is left out.
    assert_eq!(lines.iter().map(|points| points.split(' ').count()).collect::<Vec<_>>(), [2, 2, 2, 2, 2, 2]);
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn bars_are_as_high_as_their_share_of_the_first() {
    let svg = svg("t", &[outcome("a", 10), outcome("b", 5)]);
    let heights: Vec<f64> = svg
        .lines()
        .filter(|line| line.starts_with("<rect ") && line.contains(" height=") && line.contains("fill=\"#"))
        .filter_map(|line| line.split_once(" height=\"")?.1.split_once('"')?.0.parse().ok())
        .filter(|height| *height != 12.0)
        .collect();
    assert_eq!(heights.len(), 6);
    assert!((heights[0] - 2.0 * heights[1]).abs() < 0.2, "{heights:?}");
    assert_eq!(&heights[4..], [0.0, 0.0], "nothing was wasted");
}

#[test]
fn no_outcome_is_an_empty_plot() {
    let svg = svg("nothing", &[]);
    assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"));
}
