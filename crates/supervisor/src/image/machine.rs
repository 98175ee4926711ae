//! What has to be said in the processor's own words: how a process stops in the middle of a function, and how another one goes on
//! from there.

use std::arch::global_asm;

use super::replace::Call;

/// Where a process goes on.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Point {
    pub stack: u64,
    pub instruction: u64,
}

/// What the process that goes on is told by the one that it was: where the code is that it does not need any more.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Remains {
    pub start: u64,
    pub bytes: u64,
}

unsafe extern "C" {
    /// Notes in `point` where the caller would go on, and calls `leave`, which does not return. Returns in a process that
    /// has jumped to `point`.
    #[link_name = "firelet_image_leave"]
    pub(super) fn leave(
        point: *mut Point,
        leave: unsafe extern "C" fn(*mut Point, *mut u8) -> !,
        with: *mut u8,
    ) -> Remains;

    /// The first and the byte behind the last of what [`Replace`] calls.
    #[link_name = "firelet_image_replace"]
    static REPLACE: u8;
    #[link_name = "firelet_image_replace_end"]
    static REPLACE_END: u8;
}

/// Makes the system calls from the first to the one before `end`, and goes on at `stack` and `instruction`, with `start` and
/// `bytes` as [`Remains`]. A call that fails is written to `report` with its error as the last number, and ends the process.
pub(super) type Replace = unsafe extern "C" fn(
    first: *const Call,
    end: *const Call,
    point: *const Point,
    start: u64,
    bytes: u64,
    report: u64,
) -> !;

/// The code of a [`Replace`], which runs wherever it is put.
pub(super) fn replace_code() -> &'static [u8] {
    let (start, end) = (&raw const REPLACE, &raw const REPLACE_END);
    // SAFETY: both are labels around the code below, in this order, in a section that stays as it is.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

// System V calling convention: arguments in rdi, rsi, rdx, rcx, r8, r9; rbx, rbp and r12 to r15 are the caller's, as are the
// control words of both floating-point units. A pair of numbers comes back in rax and rdx.
global_asm!(
    ".pushsection .text.firelet_image, \"ax\", @progbits",
    ".globl firelet_image_leave",
    ".hidden firelet_image_leave",
    "firelet_image_leave:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "stmxcsr [rsp]",
    "fnstcw [rsp + 4]",
    "mov [rdi], rsp",
    "lea rax, [rip + 2f]",
    "mov [rdi + 8], rax",
    "mov rax, rsi",
    "mov rsi, rdx",
    "call rax",
    "ud2",
    "2:",
    "endbr64",
    "cld",
    "ldmxcsr [rsp]",
    "fldcw [rsp + 4]",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    "",
    ".globl firelet_image_replace",
    ".hidden firelet_image_replace",
    ".globl firelet_image_replace_end",
    ".hidden firelet_image_replace_end",
    "firelet_image_replace:",
    "endbr64",
    "mov r15, rdi",
    "mov rbx, rsi",
    "mov r12, [rdx]",
    "mov r13, [rdx + 8]",
    "mov r14, rcx",
    "mov rbp, r8",
    // The stack goes with the first call. Nothing is pushed from here on, and no signal comes: all are blocked.
    "mov rsp, r9",
    "2:",
    "cmp r15, rbx",
    "je 4f",
    "mov rax, [r15]",
    "mov rdi, [r15 + 8]",
    "mov rsi, [r15 + 16]",
    "mov rdx, [r15 + 24]",
    "mov r10, [r15 + 32]",
    "mov r8, [r15 + 40]",
    "mov r9, [r15 + 48]",
    "syscall",
    "cmp rax, -4096",
    "ja 3f",
    "add r15, 64",
    "jmp 2b",
    "3:",
    "mov [r15 + 56], rax",
    "mov eax, {write}",
    "mov rdi, rsp",
    "mov rsi, r15",
    "mov edx, 64",
    "syscall",
    "mov eax, {exit_group}",
    "mov edi, 125",
    "syscall",
    "ud2",
    "4:",
    "mov rsp, r12",
    "mov rax, r14",
    "mov rdx, rbp",
    "jmp r13",
    "firelet_image_replace_end:",
    ".popsection",
    write = const libc::SYS_write,
    exit_group = const libc::SYS_exit_group,
);
