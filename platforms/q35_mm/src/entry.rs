//! From the SMI to Rust and back. An unsafe island (`docs/unsafe.md`).
//!
//! An SMI finds the processor in 16-bit code at SMBASE + 0x8000, with CS at SMBASE, the other
//! segments at 0 with limits of 4 GiB, interrupts and paging off, CR4 and EFER zero (AMD64 volume
//! 2, 10.3.1). Nothing that is loaded here needs to be put back: RSM restores it all from the save
//! state, but for CR2, which a page fault changes.
//!
//! The chipset's lock leaves D_CLS free (82G33 GMCH, 5.1.37): it sends MM's data accesses, not its
//! code fetches, to what is at these addresses outside MM. So the first instructions touch no
//! memory, and clear it.
//!
//! Descriptors, TSS and IDT hold addresses in pieces, which no linker computes; so they are where
//! `smram.ld` puts them, and their addresses are written out here.

use crate::{fault, serve};
use core::arch::global_asm;

global_asm!(
    r#"
    .set CONFIG_ADDRESS, 0xcf8
    .set SMRAM_DWORD, 0x8000009c            # PCI 0:0.0: SMRAM, at 0x9d, is in it
    .set SMRAM_PORT, 0xcfd
    .set D_CLS, 1 << 5
    .set SMI_PAGE, 0xa0000
    .set PML4, 0xa1000
    .set GDT, 0xa7000
    .set TSS, 0xa7040
    .set FAULT_STACK, 0xa7c00
    .set STACK, 0xc0000
    .set OLD_CR2, STACK - 8
    .set CODE, 0x08
    .set DATA, 0x10
    .set TASK, 0x18

    .section .smi, "ax", @progbits
    .global smi_entry
smi_entry:
    .code16
    cld
    movw    $CONFIG_ADDRESS, %dx            # the interrupted program may be about to use the data port
    inl     %dx, %eax
    movl    %eax, %ebx
    movl    $SMRAM_DWORD, %eax
    outl    %eax, %dx
    movw    $SMRAM_PORT, %dx
    inb     %dx, %al
    testb   $D_CLS, %al
    jz      data_is_ours
    andb    $~D_CLS, %al
    outb    %al, %dx
data_is_ours:
    movw    $CONFIG_ADDRESS, %dx
    movl    %ebx, %eax
    outl    %eax, %dx
    lgdtl   %cs:(0x8000 + gdt_pointer - smi_entry)
    movl    $0x20, %eax                     # CR4: PAE
    movl    %eax, %cr4
    movl    $PML4, %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx               # EFER: long mode, no-execute pages
    rdmsr
    orl     $0x900, %eax
    wrmsr
    movl    %cr0, %eax                      # CR0: paging, write protection for ring 0, protection
    orl     $0x80010001, %eax
    movl    %eax, %cr0
    ljmpl   $CODE, $(SMI_PAGE + long_mode - smi_entry)

    .code64
long_mode:
    movl    $DATA, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %fs
    movl    %eax, %gs
    movl    %eax, %ss
    movl    $STACK, %esp
    movq    %cr2, %rax                      # not in the save state: a page fault of MM's would change it
    pushq   %rax
    pushq   %rax                            # so that the stack is aligned
    lidt    idt_pointer(%rip)
    movb    $0x89, (GDT + TASK + 5)         # available again: the last SMI left the task busy
    movl    $TASK, %eax
    ltr     %ax
    xorl    %ebp, %ebp
    call    {serve}
    rsm

    .balign 8
gdt_pointer:
    .word   0x27
    .long   GDT
    .balign 8
idt_pointer:
    .word   0x1ff
    .quad   SMI_PAGE + 0x400

    # What each exception pushes ends up alike: vector, error code, RIP, CS, RFLAGS, RSP, SS.
    .org    smi_entry + 0x200
    .set    vector, 0
    .rept   32
    .balign 16
    .if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector >= 29 && vector <= 30))
    pushq   $0
    .endif
    pushq   $vector
    jmp     exception
    .set    vector, vector + 1
    .endr

    # IDT: interrupt gates on the fault stack.
    .org    smi_entry + 0x400
    .set    vector, 0
    .rept   32
    .word   0x200 + 16 * vector
    .word   CODE
    .byte   1
    .byte   0x8e
    .word   SMI_PAGE >> 16
    .quad   0
    .set    vector, vector + 1
    .endr

exception:
    cld
    movq    %rsp, %rdi
    movq    %cr2, %rsi
    andq    $-16, %rsp
    call    {exception}
    .global leave_mm
leave_mm:
    movq    OLD_CR2, %rax
    movq    %rax, %cr2
    rsm

    .section .descriptors, "aw", @progbits
    .quad   0
    .quad   0x00af9b000000ffff              # 64-bit code
    .quad   0x00cf93000000ffff              # data
    .word   0x67, TSS & 0xffff              # TSS
    .byte   TSS >> 16, 0x89, 0, 0
    .quad   0
    .balign 64
    # TSS: the fault stack is IST 1, there is no I/O permission map.
    .fill   36, 1, 0
    .quad   FAULT_STACK
    .fill   58, 1, 0
    .word   0x68
    "#,
    serve = sym serve,
    exception = sym exception,
    options(att_syntax)
);

/// What is on the stack when `exception` is called.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct ExceptionFrame {
    pub(crate) vector: u64,
    pub(crate) error_code: u64,
    pub(crate) rip: u64,
}

extern "C" fn serve() {
    serve::serve();
}

extern "C" fn exception(frame: *const ExceptionFrame, cr2: u64) {
    // SAFETY: the stub passes its stack pointer, at which it and the processor have pushed these
    // fields.
    let frame = unsafe { frame.read() };
    fault::exception(frame, cr2);
}

/// Ends the SMI: the processor resumes the interrupted program.
pub(crate) fn resume() -> ! {
    // SAFETY: this code runs in System Management Mode only, where RSM, which is there behind CR2,
    // is defined; it loads everything from the save state, so that nothing on this stack is used
    // again.
    unsafe { core::arch::asm!("jmp leave_mm", options(noreturn, att_syntax)) }
}
