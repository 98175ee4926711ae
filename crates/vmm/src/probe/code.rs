//! The code that the guest runs, and the same loop for the host.
//!
//! It notes which instruction comes next at `[rdi]`, so that the host knows where it stopped, and says by port what it has
//! to say: that the loop begins, that it ended, or that a result is wrong.

use std::arch::{asm, global_asm};
use std::time::Instant;

/// Turns of the loop: half a millisecond or so on a processor, seconds where each instruction is interpreted.
pub const ITERATIONS: u64 = 200_000;
/// Port that the guest writes when the loop begins, and when it has ended.
pub const PORT_LOOP: u16 = 0x80;
/// Port that the guest writes when a result is wrong.
pub const PORT_WRONG: u16 = 0x81;

/// Offset in the guest's data of the number of the instruction that comes next: an index into [`INSTRUCTIONS`].
pub const STEP: u64 = 0;
/// Offset of the turns of the loop.
pub const TURNS: u64 = 80;
/// Offset of the way to save extended state.
pub const EXTENDED: u64 = 88;

/// The instructions by their numbers.
pub const INSTRUCTIONS: [&str; 17] = [
    "the first instruction",
    "mul, div, cmov, bswap and shifts",
    "push, call and ret",
    "rep stosq and rep movsb",
    "lock xadd",
    "cmpxchg16b",
    "movaps and other SSE instructions",
    "cpuid",
    "rdtsc",
    "wrmsr and rdmsr",
    "swapgs",
    "writes to control registers and invlpg",
    "int3 and iretq",
    "pushfq and popfq",
    "xsetbv, and xsave with xrstor or their successors",
    "mfence, pause and clflush",
    "a loop",
];

/// How extended state is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtendedState {
    /// Only the oldest way is there.
    Fxsave,
    /// `xsave` and `xrstor`.
    Xsave,
    /// `xsaves` and `xrstors`, which Linux prefers.
    Xsaves,
}

impl ExtendedState {
    /// The instruction.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fxsave => "fxsave",
            Self::Xsave => "xsave",
            Self::Xsaves => "xsaves",
        }
    }
}

// On entry: rdi the data (zeroed but for TURNS and EXTENDED), rsi an area for extended state, aligned and zeroed, rsp a
// stack; 64-bit mode, interrupts off. It may lie at any address.
global_asm!(
    r#"
    .pushsection .rodata.firelet_probe, "a", @progbits
    .balign 16
    .globl firelet_probe_begin
firelet_probe_begin:
    mov dword ptr [rdi], 1
    mov rax, 0x123456789
    mov rcx, 1000
    mul rcx
    div rcx
    bswap rax
    bswap rax
    xor ebx, ebx
    cmp rax, rcx
    cmova rbx, rax
    shl rbx, 4
    shrd rbx, rdx, 4
    bsf rcx, rbx
    movzx ecx, cl
    test ecx, ecx
    jnz 99f
    mov rcx, 0x123456789
    cmp rbx, rcx
    jne 99f

    mov dword ptr [rdi], 2
    push rbx
    call 20f
    pop rcx
    cmp rcx, rbx
    jne 99f
    jmp 21f
20: ret
21:

    mov dword ptr [rdi], 3
    mov r8, rdi
    mov r9, rsi
    lea rdi, [r8 + 128]
    mov eax, 0x5a
    mov ecx, 8
    cld
    rep stosq
    lea rsi, [r8 + 128]
    lea rdi, [r8 + 192]
    mov ecx, 64
    rep movsb
    mov rdi, r8
    mov rsi, r9
    cmp byte ptr [rdi + 248], 0x5a
    jne 99f

    mov dword ptr [rdi], 4
    mov eax, 7
    lock xadd qword ptr [rdi + 128], rax
    cmp rax, 0x5a
    jne 99f

    mov dword ptr [rdi], 5
    xor eax, eax
    xor edx, edx
    mov ebx, 3
    mov ecx, 4
    lock cmpxchg16b xmmword ptr [rdi + 16]
    jnz 99f
    cmp qword ptr [rdi + 24], 4
    jne 99f

    mov dword ptr [rdi], 6
    movaps xmm0, xmmword ptr [rdi + 16]
    pxor xmm1, xmm1
    paddq xmm1, xmm0
    movaps xmmword ptr [rdi + 32], xmm1
    cmp qword ptr [rdi + 40], 4
    jne 99f

    mov dword ptr [rdi], 7
    xor eax, eax
    xor ecx, ecx
    cpuid
    test eax, eax
    jz 99f

    mov dword ptr [rdi], 8
    rdtsc
    rdtsc

    mov dword ptr [rdi], 9
    mov ecx, 0xc0000102
    mov eax, 0x1000
    xor edx, edx
    wrmsr
    xor eax, eax
    rdmsr
    cmp eax, 0x1000
    jne 99f

    mov dword ptr [rdi], 10
    swapgs
    mov ecx, 0xc0000101
    rdmsr
    cmp eax, 0x1000
    jne 99f

    mov dword ptr [rdi], 11
    clts
    mov rax, cr0
    mov cr0, rax
    mov rax, cr4
    mov cr4, rax
    mov rax, cr3
    mov cr3, rax
    invlpg [rdi]

    mov dword ptr [rdi], 12
    int3
    cmp dword ptr [rdi + 8], 3
    jne 99f

    mov dword ptr [rdi], 13
    pushfq
    popfq

    mov dword ptr [rdi], 14
    mov eax, 3
    xor edx, edx
    cmp dword ptr [rdi + 88], 1
    jb 30f
    xor ecx, ecx
    xsetbv
    cmp dword ptr [rdi + 88], 1
    je 31f
    mov ecx, 0xda0
    xor eax, eax
    wrmsr
    mov eax, 3
    xsaves [rsi]
    pxor xmm1, xmm1
    xrstors [rsi]
    jmp 32f
30: fxsave [rsi]
    pxor xmm1, xmm1
    fxrstor [rsi]
    jmp 32f
31: xsave [rsi]
    pxor xmm1, xmm1
    xrstor [rsi]
32: movq rax, xmm1
    cmp rax, 3
    jne 99f

    mov dword ptr [rdi], 15
    mfence
    lfence
    sfence
    pause
    clflush byte ptr [rdi]

    mov dword ptr [rdi], 16
    mov dx, 0x80
    out dx, al
    mov rcx, qword ptr [rdi + 80]
40: add qword ptr [rdi + 64], rcx
    dec rcx
    jnz 40b
    out dx, al
50: hlt
    jmp 50b

99: mov dx, 0x81
    out dx, al
    jmp 50b

    .globl firelet_probe_int3
firelet_probe_int3:
    mov dword ptr [rdi + 8], 3
    iretq
    .globl firelet_probe_end
firelet_probe_end:
    .popsection
    "#
);

unsafe extern "C" {
    static firelet_probe_begin: u8;
    static firelet_probe_int3: u8;
    static firelet_probe_end: u8;
}

/// The code, and the offset in it of the handler of int3.
pub fn guest() -> (&'static [u8], u64) {
    let (begin, int3, end) =
        (&raw const firelet_probe_begin, &raw const firelet_probe_int3, &raw const firelet_probe_end);
    // SAFETY: the labels stand in this order in one section of constants, so that all between the first and the last is
    // initialized, lives as long as the program, and is never written.
    unsafe {
        (std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)), int3.offset_from_unsigned(begin) as u64)
    }
}

/// The loop of the guest on this processor: nanoseconds for a turn, the best of a few runs.
pub fn native_ns(turns: u64) -> f64 {
    let mut sum = 0u64;
    let best = (0..5)
        .map(|_| {
            let begun = Instant::now();
            // SAFETY: writes nothing but `sum` and the register given; the loop ends because `turns` is not 0.
            unsafe {
                asm!(
                    "2:",
                    "add qword ptr [{sum}], {turns}",
                    "dec {turns}",
                    "jnz 2b",
                    sum = in(reg) &raw mut sum,
                    turns = inout(reg) turns.max(1) => _,
                );
            }
            begun.elapsed()
        })
        .min()
        .unwrap_or_default();
    best.as_secs_f64().max(1e-9) * 1e9 / turns.max(1) as f64
}
