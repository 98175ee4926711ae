//! The name and the command line of a process, as others see them in `/proc`: an init that was forked from an interpreter shows its
//! own, and what is forked from the init shows the interpreter's again.

use std::ffi::CString;
use std::io;

/// Longest command line that is taken for one, in bytes.
const LONGEST: usize = 1 << 20;

/// Where the command line of this process is, and what it and the name were.
pub(crate) struct Title {
    start: *mut u8,
    line: Vec<u8>,
    name: CString,
}

impl Title {
    /// Those that this process has now. Needs `/proc`.
    pub fn of_this_process() -> io::Result<Title> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat does not say where the arguments are");
        let (start, end) = arguments(&stat).ok_or_else(malformed)?;
        let length = end.checked_sub(start).filter(|length| (1..=LONGEST).contains(length)).ok_or_else(malformed)?;
        let start = std::ptr::with_exposed_provenance_mut::<u8>(start);
        // SAFETY: the kernel put the arguments there when the program was started, on the stack of the main thread, where they
        // stay mapped, readable and writable, for as long as the process lives. Nothing else in this process refers to them.
        let line = unsafe { std::slice::from_raw_parts(start, length) }.to_vec();
        Ok(Title { start, line, name: rustix::thread::name()? })
    }

    /// Shows `line` as the command line from now on, cut to the room that there is.
    pub fn show(&self, line: &[u8]) {
        let mut shown = vec![0; self.line.len()];
        for (to, from) in shown.iter_mut().zip(line) {
            *to = *from;
        }
        // What ends without a zero byte would be read on into the environment.
        shown.pop();
        shown.push(0);
        self.write(&shown);
    }

    /// Shows what was there.
    pub fn restore(&self) -> io::Result<()> {
        self.write(&self.line);
        Ok(rustix::thread::set_name(&self.name)?)
    }

    fn write(&self, line: &[u8]) {
        // SAFETY: see `of_this_process`; `line` is as long as what was found there.
        unsafe { std::ptr::copy_nonoverlapping(line.as_ptr(), self.start, line.len().min(self.line.len())) }
    }
}

/// The fields 48 and 49 of `/proc/PID/stat` (proc_pid_stat(5)).
fn arguments(stat: &str) -> Option<(usize, usize)> {
    // The name, the second field, stands in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_ascii_whitespace().skip(48 - 3);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_found_behind_any_name() {
        let fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        let line = format!("1 (a) b (c) {}", fields.join(" "));
        assert_eq!(arguments(&line), Some((48, 49)));
        assert_eq!(arguments("1 (a) S 1"), None);
    }

    #[test]
    fn the_line_of_this_process_is_the_one_that_proc_shows() {
        let title = Title::of_this_process().unwrap();
        assert_eq!(title.line, std::fs::read("/proc/self/cmdline").unwrap());
    }
}
