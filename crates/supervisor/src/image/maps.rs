//! The mappings of this process, as `/proc/self/maps` and `/proc/self/smaps` list them (proc_pid_maps(5), proc_pid_smaps(5)).
//! Parsed in place: whoever reads them while it writes its own memory out may not allocate.

/// One mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping<'a> {
    pub start: u64,
    pub end: u64,
    /// `PROT_READ`, `PROT_WRITE` and `PROT_EXEC`.
    pub protection: i32,
    pub shared: bool,
    /// Whether it is of a file, and not of memory that has no name.
    pub has_file: bool,
    /// Path, or what the kernel says in brackets.
    pub name: &'a [u8],
    /// Two letters each, with spaces between them; empty where only `maps` was read.
    pub flags: &'a [u8],
}

impl Mapping<'_> {
    /// Whether it has one of the flags of `smaps`.
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.split(u8::is_ascii_whitespace).any(|found| found == flag)
    }

    /// Whether the kernel's own code and data for programs are in it: they are moved, not copied.
    pub fn is_kernels(&self) -> bool {
        self.name.starts_with(b"[vdso") || self.name.starts_with(b"[vvar")
    }

    /// Whether it is in every process at the same place.
    pub fn is_everywhere(&self) -> bool {
        self.name == b"[vsyscall]"
    }
}

/// All mappings of a list, in its order. `None` in place of one says that the list is not what it should be.
pub(super) struct Mappings<'a>(pub &'a [u8]);

impl<'a> Iterator for Mappings<'a> {
    type Item = Option<Mapping<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.line()?;
        let mut found = first(line);
        // What is said of a mapping follows in lines that begin with a capital; addresses have none.
        while self.0.first().is_some_and(u8::is_ascii_uppercase) {
            if let (Some(flags), Some(found)) =
                (self.line().and_then(|line| line.strip_prefix(b"VmFlags:")), found.as_mut())
            {
                found.flags = flags;
            }
        }
        if found.is_none() {
            self.0 = &[];
        }
        Some(found)
    }
}

impl<'a> Mappings<'a> {
    fn line(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().position(|byte| *byte == b'\n').unwrap_or(self.0.len());
        let (line, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        Some(line)
    }
}

/// `start-end perms offset dev inode    name`
fn first(line: &[u8]) -> Option<Mapping<'_>> {
    let mut rest = line;
    let (start, end) = split(field(&mut rest)?, b'-')?;
    let (start, end) = (hexadecimal(start)?, hexadecimal(end)?);
    let &[read, write, execute, shared] = field(&mut rest)? else { return None };
    let (_offset, _device) = (field(&mut rest)?, field(&mut rest)?);
    let inode = field(&mut rest)?;
    let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
    if start >= end || !start.is_multiple_of(4096) || !end.is_multiple_of(4096) {
        return None;
    }
    let may = |shown: u8, letter: u8, protection: i32| match shown {
        b'-' => Some(0),
        shown if shown == letter => Some(protection),
        _ => None,
    };
    let protection =
        may(read, b'r', libc::PROT_READ)? | may(write, b'w', libc::PROT_WRITE)? | may(execute, b'x', libc::PROT_EXEC)?;
    let shared = match shared {
        b's' => true,
        b'p' => false,
        _ => return None,
    };
    Some(Mapping { start, end, protection, shared, has_file: inode != b"0", name: &rest[spaces..], flags: &[] })
}

/// Takes a field off a line, up to the next space.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (field, after) = split(rest, b' ').unwrap_or((rest, &[]));
    *rest = after;
    (!field.is_empty()).then_some(field)
}

fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == at)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0, |value, digit| Some(value << 4 | u64::from((*digit as char).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &[u8] = b"00400000-00420000 r--p 00000000 fe:00 33                     /usr/bin/python3.11
Size:                128 kB
VmFlags: rd mr mw me sd 
7f2000000000-7f2000021000 rw-p 00000000 00:00 0 
Size:                132 kB
VmFlags: rd wr mr mw me nr sd wf 
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
7ffd000f0000-7ffd000f2000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn what_the_kernel_lists_is_read() {
        let found: Vec<_> = Mappings(LISTED).map(Option::unwrap).collect();
        assert_eq!(found.len(), 5);
        assert_eq!((found[0].start, found[0].end), (0x40_0000, 0x42_0000));
        assert!(found[0].has_file && !found[0].has(b"wf") && found[0].has(b"me"));
        assert_eq!(found[0].name, b"/usr/bin/python3.11");
        assert!(!found[1].has_file && found[1].has(b"wf") && found[1].name.is_empty());
        assert_eq!(found[1].protection, libc::PROT_READ | libc::PROT_WRITE);
        assert!(found[3].is_kernels() && found[4].is_everywhere());
    }

    #[test]
    fn a_path_may_look_like_anything() {
        let line = b"1000-2000 rw-s 00000000 00:01 7      /tmp/a  b [stack] VmFlags: dp";
        let found = Mappings(line).next().unwrap().unwrap();
        assert_eq!(found.name, b"/tmp/a  b [stack] VmFlags: dp");
        assert!(found.shared && found.has_file && found.flags.is_empty());
    }

    #[test]
    fn what_is_no_list_ends_it() {
        for line in [
            "x",
            "1000-2000",
            "1000-2000 rw-p",
            "2000-1000 rw-p 0 0:0 0 ",
            "1001-2000 rw-p 0 0:0 0 ",
            "1000-2000 rwxq 0 0:0 0 ",
            "1000-2000 rw 0 0:0 0 ",
            "1000-11111111111111111 rw-p 0 0:0 0 ",
            "\n\n",
            "1000-200g rw-p 0 0:0 0 ",
            "-2000 rw-p 0 0:0 0 ",
            "1000-2000 wr-p 0 0:0 0 ",
            "Size: 1\n",
        ] {
            let found: Vec<_> = Mappings(line.as_bytes()).collect();
            assert_eq!(found, [None], "{line}");
        }
        assert_eq!(Mappings(b"").next(), None);
    }

    #[test]
    fn this_process_is_read_whole() {
        let text = std::fs::read("/proc/self/smaps").unwrap();
        let found: Vec<_> = Mappings(&text).map(Option::unwrap).collect();
        assert!(found.iter().any(|mapping| mapping.name == b"[stack]" && mapping.has(b"gd")));
        assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }

    proptest::proptest! {
        #[test]
        fn no_list_causes_a_panic_or_goes_on_forever(bytes: Vec<u8>, line in "[0-9a-f]{1,17}-[0-9a-f]{1,17} [rwxps-]{3,5} [0-9a-f]{1,8} 00:00 [0-9]{1,4} ?.{0,40}\n[A-Z]?.{0,20}") {
            proptest::prop_assert!(Mappings(&bytes).count() <= bytes.len());
            for mapping in Mappings(line.as_bytes()).flatten() {
                proptest::prop_assert!(mapping.start < mapping.end);
            }
        }
    }
}
