//! The first program of a Linux guest: a few hundred bytes of assembly, so that it needs neither compiler nor C library
//! where the tests run, packed into an initramfs (cpio, "newc").
//!
//! It says `I <cpus> <bytes of memory>`, then does what the first letter of its first argument says: `t` tick (a line
//! `T <number> <monotonic ns> <random>` every 5 ms, on one CPU after the other), `r` reset, `o` switch off, `p` return and so
//! make the kernel panic, `b` keep the CPU busy without a system call. Numbers are hexadecimal, 16 digits. It speaks through the
//! kernel's log, which needs no interrupt of the console.

use std::arch::global_asm;

global_asm!(
    ".pushsection .rodata.guest_init, \"a\"",
    ".global GUEST_INIT_START, GUEST_INIT_END",
    "GUEST_INIT_START:",
    // Arguments: [rsp] count, [rsp+16] the first.
    "xor ebp, ebp",
    "cmp qword ptr [rsp], 2",
    "jb 10f",
    "mov rax, [rsp+16]",
    "movzx ebp, byte ptr [rax]",
    "10:",
    "sub rsp, 512",
    // open("/dev/kmsg", O_WRONLY)
    "mov eax, 2",
    "lea rdi, [rip + 95f]",
    "mov esi, 1",
    "xor edx, edx",
    "syscall",
    "mov r14, rax",
    // sched_getaffinity(0, 8, rsp): the mask of CPUs; then sysinfo.
    "mov eax, 204",
    "xor edi, edi",
    "mov esi, 8",
    "mov qword ptr [rsp+256], 0",
    "lea rdx, [rsp+256]",
    "syscall",
    "mov eax, 99",
    "lea rdi, [rsp+288]",
    "syscall",
    "popcnt r13, qword ptr [rsp+256]",
    "mov dword ptr [rsp], 0x493e313c", // <1>I
    "lea rbx, [rsp+4]",
    "mov rax, r13",
    "call 80f",
    "mov rax, [rsp+288+32]",  // totalram
    "mov ecx, [rsp+288+104]", // mem_unit
    "imul rax, rcx",
    "call 80f",
    "call 90f",
    "cmp ebp, 0x74", // t
    "je 20f",
    "cmp ebp, 0x72", // r
    "je 30f",
    "cmp ebp, 0x6f", // o
    "je 40f",
    "cmp ebp, 0x62", // b
    "je 50f",
    // p: exit
    "mov eax, 231",
    "mov edi, 3",
    "syscall",
    // Tick.
    "20:",
    "xor r12, r12",
    "21:",
    "inc r12",
    // sched_setaffinity(0, 8, 1 << (r12 % cpus))
    "mov rax, r12",
    "xor edx, edx",
    "div r13",
    "mov ecx, edx",
    "mov eax, 1",
    "shl rax, cl",
    "mov [rsp+256], rax",
    "mov eax, 203",
    "xor edi, edi",
    "mov esi, 8",
    "lea rdx, [rsp+256]",
    "syscall",
    // clock_gettime(CLOCK_MONOTONIC)
    "mov eax, 228",
    "mov edi, 1",
    "lea rsi, [rsp+264]",
    "syscall",
    // getrandom
    "mov eax, 318",
    "lea rdi, [rsp+280]",
    "mov esi, 8",
    "xor edx, edx",
    "syscall",
    "mov dword ptr [rsp], 0x543e313c", // <1>T
    "lea rbx, [rsp+4]",
    "mov rax, r12",
    "call 80f",
    "imul rax, qword ptr [rsp+264], 1000000000",
    "add rax, [rsp+272]",
    "call 80f",
    "mov rax, [rsp+280]",
    "call 80f",
    "call 90f",
    // nanosleep 5 ms
    "mov qword ptr [rsp+264], 0",
    "mov qword ptr [rsp+272], 5000000",
    "mov eax, 35",
    "lea rdi, [rsp+264]",
    "xor esi, esi",
    "syscall",
    "jmp 21b",
    // reboot(RESTART) and reboot(POWER_OFF)
    "30:",
    "mov edx, 0x1234567",
    "jmp 41f",
    "40:",
    "mov edx, 0x4321fedc",
    "41:",
    "mov eax, 169",
    "mov edi, 0xfee1dead",
    "mov esi, 672274793",
    "syscall",
    "hlt",
    // Busy.
    "50:",
    "jmp 50b",
    // Appends a space and rax in hexadecimal at rbx.
    "80:",
    "mov byte ptr [rbx], 0x20",
    "inc rbx",
    "mov ecx, 16",
    "81:",
    "rol rax, 4",
    "mov edx, eax",
    "and edx, 15",
    "add edx, 0x30",
    "cmp edx, 0x3a",
    "jb 82f",
    "add edx, 0x27",
    "82:",
    "mov [rbx], dl",
    "inc rbx",
    "dec ecx",
    "jnz 81b",
    "ret",
    // Writes the line from the frame's start to rbx.
    "90:",
    "mov byte ptr [rbx], 10",
    "inc rbx",
    "lea rsi, [rsp+8]",
    "mov rdx, rbx",
    "sub rdx, rsi",
    "mov eax, 1",
    "mov rdi, r14",
    "syscall",
    "ret",
    "95:",
    ".asciz \"/dev/kmsg\"",
    "GUEST_INIT_END:",
    ".popsection",
);

unsafe extern "C" {
    static GUEST_INIT_START: u8;
    static GUEST_INIT_END: u8;
}

/// The bytes between two labels of assembly.
macro_rules! code_between {
    ($start:ident, $end:ident) => {{
        let (start, end) = (&raw const $start, &raw const $end);
        // SAFETY: both are labels in one section of read-only data, in this order.
        unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
    }};
}
pub(crate) use code_between;

/// An ELF executable that is `code`, loaded and entered at `address`.
pub fn elf(address: u64, code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [address + HEADERS, 64, 0] {
        file.extend(u64::to_le_bytes(word));
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let length = HEADERS + code.len() as u64;
    for word in [0, address, address, length, length, 0x1000] {
        file.extend(u64::to_le_bytes(word));
    }
    file.extend(code);
    file
}

/// What makes our init do this. With `RUST_LOG` the kernel says everything.
pub fn cmdline(role: char) -> String {
    let talk = if std::env::var_os("RUST_LOG").is_some() { "ignore_loglevel" } else { "loglevel=4" };
    format!("{talk} printk.devkmsg=on printk.time=0 -- {role}")
}

/// The initial file system: `/init` and what it opens.
pub fn initramfs() -> Vec<u8> {
    let init = elf(0x40_0000, code_between!(GUEST_INIT_START, GUEST_INIT_END));
    let mut archive = Vec::new();
    entry(&mut archive, "dev", 0o40755, (0, 0), &[]);
    entry(&mut archive, "dev/console", 0o20600, (5, 1), &[]);
    entry(&mut archive, "dev/kmsg", 0o20600, (1, 11), &[]);
    entry(&mut archive, "init", 0o100755, (0, 0), &init);
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    archive
}

/// Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
    let number = archive.len() as u32 + 1;
    let (size, name_size) = (contents.len() as u32, name.len() as u32 + 1);
    archive.extend(b"070701");
    for field in [number, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0] {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(contents);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// The numbers of a line of ours.
pub fn numbers(line: &str) -> Vec<u64> {
    line.split_ascii_whitespace().skip(1).map(|word| u64::from_str_radix(word, 16).unwrap()).collect()
}
