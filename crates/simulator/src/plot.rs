//! A plot of outcomes as SVG: four panels, a colour for each policy.

mod chart;

use chart::{Bars, Chart, Line, Scale};

use crate::outcome::Outcome;

/// Colours that can be told apart by the colour-blind too (Okabe and Ito), then from the beginning again.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 760.0;
const MARGIN: f64 = 16.0;
const TITLE: f64 = 56.0;

/// Draws the outcomes of one trace. The text is a whole SVG document.
pub fn svg(title: &str, outcomes: &[Outcome]) -> String {
    let colours: Vec<&str> = COLOURS.iter().copied().cycle().take(outcomes.len()).collect();
    let lines = |points: fn(&Outcome) -> &[(f64, f64)]| -> Vec<Line<'_>> {
        let line = |(outcome, colour): (_, &&'static str)| Line { points: points(outcome), colour };
        outcomes.iter().zip(&colours).map(line).collect()
    };
    let panel = |column: f64, row: f64| chart::Frame {
        x: MARGIN + column * (WIDTH - MARGIN) / 2.0,
        y: TITLE + row * (HEIGHT - TITLE) / 2.0,
        width: (WIDTH - 3.0 * MARGIN) / 2.0,
        height: (HEIGHT - TITLE) / 2.0 - MARGIN,
    };

    let mut out = chart::open(WIDTH, HEIGHT);
    chart::text(&mut out, MARGIN, 22.0, "title", title);
    let mut x = MARGIN;
    for (outcome, colour) in outcomes.iter().zip(&colours) {
        chart::key(&mut out, x, 42.0, colour, &outcome.policy);
        x += 40.0 + 8.0 * outcome.policy.chars().count() as f64;
    }
    Bars {
        title: "Cold starts and wasted memory, beside the first policy (%)",
        groups: &["cold starts", "p75 of functions", "wasted memory"],
        values: &relative(outcomes),
        colours: &colours,
    }
    .draw(&mut out, panel(0.0, 0.0));
    Chart {
        title: "Functions (%) with at most so many cold starts",
        x: "cold starts of a function (%)",
        x_scale: Scale::Linear { from: Some(0.0), to: Some(100.0) },
        y_scale: Scale::Linear { from: Some(0.0), to: Some(100.0) },
        lines: &lines(|outcome| &outcome.curves.cold_of_functions),
    }
    .draw(&mut out, panel(1.0, 0.0));
    Chart {
        title: "Idle memory (GiB)",
        x: "hours",
        x_scale: Scale::Linear { from: Some(0.0), to: None },
        y_scale: Scale::Linear { from: Some(0.0), to: None },
        lines: &lines(|outcome| &outcome.curves.idle),
    }
    .draw(&mut out, panel(0.0, 1.0));
    Chart {
        title: "Invocations (%) to which so much was added, or more",
        x: "added latency (ms)",
        x_scale: Scale::Logarithmic,
        y_scale: Scale::Logarithmic,
        lines: &lines(|outcome| &outcome.curves.slower),
    }
    .draw(&mut out, panel(1.0, 1.0));
    chart::close(out)
}

/// For each group of bars, each outcome in percent of the first.
fn relative(outcomes: &[Outcome]) -> Vec<Vec<f64>> {
    let measures: [fn(&Outcome) -> f64; 3] =
        [Outcome::cold_rate, |outcome| outcome.cold_percent_of_functions_p75, |outcome| outcome.wasted_mib_seconds];
    let of_first = |measure: &fn(&Outcome) -> f64| {
        let first = outcomes.first().map_or(0.0, measure);
        let percent = |outcome| if first > 0.0 { 100.0 * measure(outcome) / first } else { 0.0 };
        outcomes.iter().map(percent).collect()
    };
    measures.iter().map(of_first).collect()
}

#[cfg(test)]
mod tests;
