//! Process 1 of the guests of these tests: a few hundred bytes of machine code that serve vsock port 52, and the archive
//! that it boots from.
//!
//! Each connection gets 16 random bytes, then an echo. What begins with a certain letter is an order instead: `R` resets
//! the machine, `P` panics its kernel, `S` spins with interrupts off.

use std::arch::global_asm;
use std::io::{Seek, Write};

/// The port that it serves.
pub const PORT: u32 = 52;

// Linux system calls, by number. r12 is the listener, r13 the connection, rsp a buffer.
global_asm!(
    ".pushsection .rodata",
    ".globl vmm_test_init_start",
    ".globl vmm_test_init_end",
    "vmm_test_init_start:",
    "sub rsp, 8192",
    // socket(AF_VSOCK, SOCK_STREAM, 0)
    "mov edi, 40",
    "mov esi, 1",
    "xor edx, edx",
    "mov eax, 41",
    "syscall",
    "mov r12, rax",
    // struct sockaddr_vm: family, port, any context
    "mov rax, (52 << 32) + 40",
    "mov [rsp], rax",
    "mov eax, 0xffffffff",
    "mov [rsp + 8], rax",
    // bind, listen
    "mov rdi, r12",
    "mov rsi, rsp",
    "mov edx, 16",
    "mov eax, 49",
    "syscall",
    "mov rdi, r12",
    "mov esi, 64",
    "mov eax, 50",
    "syscall",
    // accept
    "2:",
    "mov rdi, r12",
    "xor esi, esi",
    "xor edx, edx",
    "mov eax, 43",
    "syscall",
    "test rax, rax",
    "js 2b",
    "mov r13, rax",
    // getrandom, write
    "mov rdi, rsp",
    "mov esi, 16",
    "xor edx, edx",
    "mov eax, 318",
    "syscall",
    "mov edx, 16",
    "3:",
    "mov rdi, r13",
    "mov rsi, rsp",
    "mov eax, 1",
    "syscall",
    // read, look, write
    "mov rdi, r13",
    "mov rsi, rsp",
    "mov edx, 4096",
    "xor eax, eax",
    "syscall",
    "test rax, rax",
    "jle 4f",
    "mov rdx, rax",
    "mov cl, [rsp]",
    "cmp cl, 'R'",
    "je 5f",
    "cmp cl, 'P'",
    "je 6f",
    "cmp cl, 'S'",
    "je 7f",
    "jmp 3b",
    // close
    "4:",
    "mov rdi, r13",
    "mov eax, 3",
    "syscall",
    "jmp 2b",
    // reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART)
    "5:",
    "mov edi, 0xfee1dead",
    "mov esi, 672274793",
    "mov edx, 0x01234567",
    "mov eax, 169",
    "syscall",
    // exit: the kernel panics without process 1
    "6:",
    "mov edi, 1",
    "mov eax, 231",
    "syscall",
    // iopl(3), then no interrupt ever again
    "7:",
    "mov edi, 3",
    "mov eax, 172",
    "syscall",
    "cli",
    "8:",
    "jmp 8b",
    "vmm_test_init_end:",
    ".popsection",
);

unsafe extern "C" {
    static vmm_test_init_start: u8;
    static vmm_test_init_end: u8;
}

/// An archive ("newc") with nothing but `/init`.
pub fn initramfs() -> std::fs::File {
    let mut archive = Vec::new();
    member(&mut archive, "init", 0o100_755, &elf());
    member(&mut archive, "TRAILER!!!", 0, &[]);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&archive).unwrap();
    file.rewind().unwrap();
    file
}

/// The code as a static executable: one header, one segment.
fn elf() -> Vec<u8> {
    // SAFETY: both labels are in one section, with the code between them.
    let code = unsafe {
        let (start, end) = (&raw const vmm_test_init_start, &raw const vmm_test_init_end);
        std::slice::from_raw_parts(start, end.offset_from_unsigned(start))
    };
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let length = HEADERS + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // ET_EXEC, x86-64, version, entry, program headers, sections, flags, sizes and counts.
    elf.extend([2u16, 62].into_iter().flat_map(u16::to_le_bytes));
    elf.extend(1u32.to_le_bytes());
    elf.extend([BASE + HEADERS, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    // PT_LOAD, readable and executable, at offset 0.
    elf.extend([1u32, 5].into_iter().flat_map(u32::to_le_bytes));
    elf.extend([0, BASE, BASE, length, length, 4096].into_iter().flat_map(u64::to_le_bytes));
    elf.extend(code);
    elf
}

fn member(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    let fields = [1, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend(b"070701");
    archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    archive.extend(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend(content);
    pad(archive);
}
