//! Comma-separated tables of hashes and numbers, as the Azure data sets are: a heading, no quotes.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use crate::trace::TraceError;

/// Longest line that is read, in bytes: a day of minutes with nine digits each, and the names.
const LONGEST_LINE: u64 = 64 << 10;

/// A table being read.
#[derive(Debug)]
pub(crate) struct Table<R> {
    path: PathBuf,
    reader: R,
    line: u64,
    text: String,
    /// Where the wanted columns are.
    wanted: Vec<usize>,
    /// Where the fields of the current line begin and end.
    fields: Vec<(usize, usize)>,
}

impl<R: BufRead> Table<R> {
    /// Reads the heading and finds the columns in it; others may be there too.
    pub(crate) fn open(path: &Path, reader: R, columns: &[&str]) -> Result<Self, TraceError> {
        let mut table = Self {
            path: path.to_owned(),
            reader,
            line: 0,
            text: String::new(),
            wanted: Vec::new(),
            fields: Vec::new(),
        };
        table.read_line()?;
        let heading: Vec<&str> = table.text.split(',').map(str::trim).collect();
        let mut wanted = Vec::with_capacity(columns.len());
        for column in columns {
            let place = heading.iter().position(|found| found == column).ok_or_else(|| TraceError::Line {
                path: path.to_owned(),
                line: 1,
                problem: format!("the heading has no column {column}"),
            })?;
            wanted.push(place);
        }
        table.wanted = wanted;
        Ok(table)
    }

    /// The next line that is not empty.
    pub(crate) fn next(&mut self) -> Result<Option<Row<'_>>, TraceError> {
        loop {
            if !self.read_line()? {
                return Ok(None);
            }
            if !self.text.is_empty() {
                break;
            }
        }
        self.fields.clear();
        let mut from = 0;
        for field in self.text.split(',') {
            self.fields.push((from, from + field.len()));
            from += field.len() + 1;
        }
        let row =
            Row { path: &self.path, line: self.line, text: &self.text, wanted: &self.wanted, fields: &self.fields };
        match self.wanted.iter().any(|place| *place >= self.fields.len()) {
            true => Err(row.error("the line has fewer columns than the heading")),
            false => Ok(Some(row)),
        }
    }

    fn read_line(&mut self) -> Result<bool, TraceError> {
        self.text.clear();
        self.line += 1;
        let mut limited = std::io::Read::take(&mut self.reader, LONGEST_LINE);
        let read =
            limited.read_line(&mut self.text).map_err(|source| TraceError::Read { path: self.path.clone(), source })?;
        if read as u64 == LONGEST_LINE {
            let problem = format!("the line is longer than {LONGEST_LINE} bytes");
            return Err(TraceError::Line { path: self.path.clone(), line: self.line, problem });
        }
        self.text.truncate(self.text.trim_end().len());
        Ok(read > 0)
    }
}

/// A line of a [`Table`]; columns are counted as they were asked for.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    path: &'a Path,
    line: u64,
    text: &'a str,
    wanted: &'a [usize],
    fields: &'a [(usize, usize)],
}

impl Row<'_> {
    /// A field; empty when there is no such column.
    pub(crate) fn text(&self, column: usize) -> &str {
        let range = self.wanted.get(column).and_then(|place| self.fields.get(*place));
        range.and_then(|(from, to)| self.text.get(*from..*to)).unwrap_or("").trim()
    }

    /// A field that has to be a finite number.
    pub(crate) fn number(&self, column: usize) -> Result<f64, TraceError> {
        let text = self.text(column);
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            Ok(_) | Err(_) => Err(self.error(&format!("{text:?} is not a number"))),
        }
    }

    /// A field that has to be a count; empty is 0.
    pub(crate) fn count(&self, column: usize) -> Result<u32, TraceError> {
        let text = self.text(column);
        if text.is_empty() {
            return Ok(0);
        }
        text.parse().map_err(|_| self.error(&format!("{text:?} is not a count")))
    }

    /// Says what is wrong with this line.
    pub(crate) fn error(&self, problem: &str) -> TraceError {
        TraceError::Line { path: self.path.to_owned(), line: self.line, problem: problem.to_owned() }
    }
}
