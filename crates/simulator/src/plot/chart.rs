//! Lines and bars with axes, as SVG elements appended to a text. Knows nothing of policies.

use std::fmt::Write as _;

/// Where on the page a panel goes, in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// Room for titles and numbers around what is drawn.
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const ABOVE: f64 = 28.0;
const BELOW: f64 = 40.0;

impl Frame {
    fn inner(self) -> Self {
        Self {
            x: self.x + LEFT,
            y: self.y + ABOVE,
            width: self.width - LEFT - RIGHT,
            height: self.height - ABOVE - BELOW,
        }
    }
}

/// How numbers become places.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scale {
    /// Bounds that are not given are those of the points.
    Linear { from: Option<f64>, to: Option<f64> },
    /// Whole powers of ten around the points; numbers that are not positive are left out.
    Logarithmic,
}

/// A scale with its bounds.
#[derive(Debug, Clone, Copy)]
struct Axis {
    logarithmic: bool,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(scale: Scale, numbers: impl Iterator<Item = f64>) -> Self {
        let logarithmic = matches!(scale, Scale::Logarithmic);
        let usable = numbers.filter(|number| number.is_finite() && (!logarithmic || *number > 0.0));
        let (least, most) = usable.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), n| (a.min(n), b.max(n)));
        let (least, most) = if least <= most { (least, most) } else { (1.0, 10.0) };
        let (from, to) = match scale {
            Scale::Linear { from, to } => (from.unwrap_or(least), to.unwrap_or(most)),
            Scale::Logarithmic => (least.log10().floor(), most.log10().ceil()),
        };
        // A line of one number still needs some width.
        Self { logarithmic, from, to: if to > from { to } else { from + 1.0 } }
    }

    /// 0 at the begin of the axis, 1 at its end; `None` for what cannot be shown.
    fn place(&self, number: f64) -> Option<f64> {
        let number = if self.logarithmic { number.log10() } else { number };
        number.is_finite().then(|| ((number - self.from) / (self.to - self.from)).clamp(0.0, 1.0))
    }

    /// Numbers worth a mark.
    fn ticks(&self) -> Vec<f64> {
        let wanted = (self.to - self.from) / 5.0;
        let step = if self.logarithmic {
            wanted.ceil().max(1.0)
        } else {
            let power = 10f64.powf(wanted.log10().floor());
            [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| *step >= wanted).unwrap_or(wanted)
        };
        // At most a handful, whatever the bounds: the step is a fifth of them or more.
        (0..=6)
            .map(|index| ((self.from / step).ceil() + f64::from(index)) * step)
            .filter(|tick| *tick <= self.to + step * 1e-9)
            .map(|tick| if self.logarithmic { 10f64.powf(tick) } else { tick })
            .collect()
    }
}

/// Points joined by a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) points: &'a [(f64, f64)],
    pub(super) colour: &'a str,
}

/// Lines over two axes.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) x_scale: Scale,
    pub(super) y_scale: Scale,
    pub(super) lines: &'a [Line<'a>],
}

impl Chart<'_> {
    pub(super) fn draw(&self, out: &mut String, frame: Frame) {
        let inner = frame.inner();
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let x_axis = Axis::new(self.x_scale, points().map(|(x, _)| *x));
        let y_axis = Axis::new(self.y_scale, points().map(|(_, y)| *y));
        text(out, frame.x, frame.y + 16.0, "panel", self.title);
        frame_lines(out, inner);
        ticks_up(out, inner, &y_axis);
        for tick in x_axis.ticks() {
            if let Some(place) = x_axis.place(tick) {
                let x = inner.x + place * inner.width;
                rule(out, (x, inner.y), (x, inner.y + inner.height));
                text(out, x, inner.y + inner.height + 14.0, "below", &number(tick));
            }
        }
        text(out, inner.x + inner.width / 2.0, inner.y + inner.height + 30.0, "below", self.x);
        for line in self.lines {
            let mut drawn = String::new();
            for (x, y) in line.points {
                if let (Some(x), Some(y)) = (x_axis.place(*x), y_axis.place(*y)) {
                    let (x, y) = (inner.x + x * inner.width, inner.y + (1.0 - y) * inner.height);
                    let _ = write!(drawn, "{x:.1},{y:.1} ");
                }
            }
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"/>",
                drawn.trim_end(),
                line.colour
            );
        }
    }
}

/// Groups of bars beside each other, a bar for each colour.
#[derive(Debug)]
pub(super) struct Bars<'a> {
    pub(super) title: &'a str,
    pub(super) groups: &'a [&'a str],
    /// For each group, a value for each colour.
    pub(super) values: &'a [Vec<f64>],
    pub(super) colours: &'a [&'a str],
}

impl Bars<'_> {
    pub(super) fn draw(&self, out: &mut String, frame: Frame) {
        let inner = frame.inner();
        let scale = Scale::Linear { from: Some(0.0), to: None };
        // Some room above the highest bar for its number.
        let axis = Axis::new(scale, self.values.iter().flatten().map(|value| value * 1.1));
        text(out, frame.x, frame.y + 16.0, "panel", self.title);
        frame_lines(out, inner);
        ticks_up(out, inner, &axis);
        let group_width = inner.width / self.groups.len().max(1) as f64;
        let bar = group_width * 0.8 / self.colours.len().max(1) as f64;
        let mut group_x = inner.x;
        for (group, values) in self.groups.iter().zip(self.values) {
            text(out, group_x + group_width / 2.0, inner.y + inner.height + 14.0, "below", group);
            let mut x = group_x + group_width * 0.1;
            for (value, colour) in values.iter().zip(self.colours) {
                let height = axis.place(*value).unwrap_or(0.0) * inner.height;
                let y = inner.y + inner.height - height;
                let _ = writeln!(
                    out,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>",
                    bar * 0.9
                );
                text(out, x + bar * 0.45, y - 3.0, "below", &format!("{value:.0}"));
                x += bar;
            }
            group_x += group_width;
        }
    }
}

/// The begin of a document.
pub(super) fn open(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\">\n<style>text {{ font: 11px sans-serif; fill: #333 }} .title {{ font-size: 16px }} \
         .panel {{ font-size: 13px }} .below {{ text-anchor: middle }} .left {{ text-anchor: end }}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    )
}

/// The end of a document.
pub(super) fn close(mut out: String) -> String {
    out.push_str("</svg>\n");
    out
}

/// Words at a place; `class` is one of those in [`open`].
pub(super) fn text(out: &mut String, x: f64, y: f64, class: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // Writing to a String cannot fail, here and elsewhere in this file.
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{words}</text>");
}

/// A colour and what it stands for.
pub(super) fn key(out: &mut String, x: f64, y: f64, colour: &str, words: &str) {
    let _ = writeln!(out, "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>", y - 10.0);
    text(out, x + 18.0, y, "key", words);
}

fn frame_lines(out: &mut String, inner: Frame) {
    let Frame { x, y, width, height } = inner;
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"none\" stroke=\"#999\"/>"
    );
}

fn ticks_up(out: &mut String, inner: Frame, axis: &Axis) {
    for tick in axis.ticks() {
        if let Some(place) = axis.place(tick) {
            let y = inner.y + (1.0 - place) * inner.height;
            rule(out, (inner.x, y), (inner.x + inner.width, y));
            text(out, inner.x - 5.0, y + 4.0, "left", &number(tick));
        }
    }
}

fn rule(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>",
        from.0, from.1, to.0, to.1
    );
}

/// Short, without zeros at the end.
fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 10_000.0 {
        format!("{:.0}k", value / 1e3)
    } else if size >= 10.0 || size == 0.0 {
        format!("{value:.0}")
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}
