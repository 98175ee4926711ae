//! What the kernel knows of a thread and its process that no memory holds: taken down by the process that leaves, told to the
//! kernel again by the one that goes on.

use std::ffi::{c_int, c_long};
use std::io;

use super::machine::Remains;

/// `prctl`: where the kernel clears the thread's number at its end, which is where the C library keeps it. Only in kernels that
/// are built for checkpoints (`CONFIG_CHECKPOINT_RESTORE`).
const PR_GET_TID_ADDRESS: c_int = 40;
/// Signature of the C library's areas for restartable sequences (sys/rseq.h).
const RSEQ_SIGNATURE: u32 = 0x5305_3053;
const RSEQ_UNREGISTER: c_int = 1;
/// Bytes of a kernel's set of signals.
const SET_BYTES: usize = 8;
const SIGNALS: usize = 64;

/// As the kernel has it: handler, flags, restorer, mask.
type Action = [u64; 4];

/// Taken down, to be [told](Thread::tell) again.
pub(super) struct Thread {
    /// Where the C library keeps the thread's number.
    number: *mut c_int,
    robust: (u64, u64),
    sequences: Option<Sequences>,
    actions: [Action; SIGNALS],
    blocked: u64,
    stack: libc::stack_t,
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Blocks every signal; returns what was blocked before.
pub(super) fn block_signals() -> io::Result<u64> {
    mask(u64::MAX)
}

fn mask(blocked: u64) -> io::Result<u64> {
    let mut before = 0u64;
    // SAFETY: two sets of eight bytes. The raw call, because the C library keeps two signals for itself.
    check(unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const blocked, &raw mut before, SET_BYTES)
    })?;
    Ok(before)
}

impl Thread {
    /// Of the only thread of this process. All signals are blocked from here on.
    pub fn take_down() -> io::Result<Thread> {
        let blocked = block_signals()?;
        let mut number: *mut c_int = std::ptr::null_mut();
        // SAFETY: writes an address to `number`; the other arguments are not looked at.
        check(unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut number, 0, 0, 0) }.into())?;
        // SAFETY: a number that does not change, read by the kernel's side too.
        if number.is_null() || unsafe { number.read() } != own_number() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "its C library keeps the thread's number elsewhere",
            ));
        }
        let mut robust = (0u64, 0u64);
        // SAFETY: writes an address and a length.
        check(unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust.0, &raw mut robust.1) })?;
        let mut actions = [Action::default(); SIGNALS];
        for (signal, action) in (1..).zip(&mut actions) {
            let none = std::ptr::null::<Action>();
            // SAFETY: only reads the action, into the kernel's structure.
            check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal as c_int, none, action, SET_BYTES) })?;
        }
        // SAFETY: all zeroes are a stack, and the call only writes to it.
        let stack = unsafe {
            let mut stack = std::mem::zeroed();
            check(libc::sigaltstack(std::ptr::null(), &raw mut stack).into())?;
            stack
        };
        let sequences = Sequences::of_the_library();
        if let Some(sequences) = &sequences {
            // Known only by trying: their length.
            sequences.register()?;
        }
        Ok(Thread { number, robust, sequences, actions, blocked, stack })
    }

    /// Tells the kernel, in the process that goes on, and gives up what has brought it here.
    pub fn tell(&self, remains: Remains) -> io::Result<()> {
        // SAFETY: see `take_down`; the memory is as it was then, and there is no other thread.
        unsafe { self.number.write(own_number()) };
        // SAFETY: addresses that the C library has given the kernel before, for as long as the thread lives.
        unsafe {
            libc::syscall(libc::SYS_set_tid_address, self.number);
            check(libc::syscall(libc::SYS_set_robust_list, self.robust.0, self.robust.1))?;
        }
        if let Some(sequences) = &self.sequences {
            sequences.register()?;
        }
        for (signal, action) in (1..).zip(&self.actions) {
            if matches!(signal as c_int, libc::SIGKILL | libc::SIGSTOP) {
                continue;
            }
            let none = std::ptr::null_mut::<Action>();
            // SAFETY: an action that the kernel has given; its handler's code is where it was.
            check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal as c_int, action, none, SET_BYTES) })?;
        }
        if self.stack.ss_flags & libc::SS_DISABLE == 0 {
            // SAFETY: a stack that was in use for this before.
            check(unsafe { libc::sigaltstack(&raw const self.stack, std::ptr::null_mut()) }.into())?;
        }
        // SAFETY: the mapping that the code ran in which has jumped here; nothing points to it.
        check(unsafe { libc::munmap(remains.start as *mut libc::c_void, remains.bytes as usize) }.into())?;
        mask(self.blocked)?;
        Ok(())
    }
}

fn own_number() -> c_int {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_gettid) as c_int }
}

/// The base of the thread's own data.
pub(super) fn thread_base() -> io::Result<u64> {
    const ARCH_GET_FS: c_int = 0x1003;
    let mut base = 0u64;
    // SAFETY: writes a number.
    check(unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &raw mut base) })?;
    Ok(base)
}

/// The area for restartable sequences that the C library has registered (rseq(2)): the kernel writes to it whenever the thread
/// changes its processor.
pub(super) struct Sequences {
    area: u64,
    bytes: u32,
}

impl Sequences {
    /// Takes it back from the kernel. `None` where none was registered.
    pub fn of_the_library() -> Option<Sequences> {
        let offset = symbol::<isize>(c"__rseq_offset")?;
        let size = symbol::<u32>(c"__rseq_size").filter(|size| *size > 0)?;
        let area = thread_base().ok()?.wrapping_add_signed(offset as i64);
        // It must be said how long the area is, which is not what the symbol says: 32 until it needs to be more.
        let lengths = [32, size.next_multiple_of(32), size];
        lengths
            .into_iter()
            .map(|bytes| Sequences { area, bytes })
            .find(|sequences| sequences.call(RSEQ_UNREGISTER).is_ok())
    }

    /// Whether the C library says that it has registered one.
    pub fn are_registered() -> bool {
        symbol::<u32>(c"__rseq_size").is_some_and(|size| size > 0)
    }

    /// Registers it (again).
    pub fn register(&self) -> io::Result<()> {
        self.call(0)
    }

    fn call(&self, flags: c_int) -> io::Result<()> {
        // SAFETY: an area of the C library's, in which the kernel finds the same as before.
        check(unsafe { libc::syscall(libc::SYS_rseq, self.area, self.bytes, flags, RSEQ_SIGNATURE) }).map(drop)
    }
}

/// A constant of the C library's.
fn symbol<T: Copy>(name: &std::ffi::CStr) -> Option<T> {
    // SAFETY: a C string, and the handle that means every object in this process.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }.cast::<T>();
    // SAFETY: both symbols that are asked for are of this type (sys/rseq.h), and never change after the start.
    (!address.is_null()).then(|| unsafe { address.read() })
}
