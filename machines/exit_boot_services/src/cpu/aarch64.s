// The exceptions of machine exit-boot-services on AArch64, at EL1.

    .text

// guarded(function: x0, argument: x1) -> 0, or 1 after an exception in it.
    .global guarded
guarded:
    stp     x29, x30, [sp, #-160]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    stp     d8, d9, [sp, #96]
    stp     d10, d11, [sp, #112]
    stp     d12, d13, [sp, #128]
    stp     d14, d15, [sp, #144]
    adrp    x9, guarded_stack
    add     x9, x9, :lo12:guarded_stack
    mov     x10, sp
    str     x10, [x9]
    mov     x2, x0
    mov     x0, x1
    blr     x2
    mov     x0, #0
leave_guarded:
    adrp    x9, guarded_stack
    add     x9, x9, :lo12:guarded_stack
    str     xzr, [x9]
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     d8, d9, [sp, #96]
    ldp     d10, d11, [sp, #112]
    ldp     d12, d13, [sp, #128]
    ldp     d14, d15, [sp, #144]
    ldp     x29, x30, [sp], #160
    ret

// enter(stack: x0, function: x1, argument: x2): does not return.
    .global enter
enter:
    mov     sp, x0
    mov     x0, x2
    blr     x1
    brk     #0

// use_tables(root: x0, TCR: x1, MAIR: x2): memory is not accessed while the MMU is off.
    .global use_tables
use_tables:
    mrs     x3, sctlr_el1
    bic     x4, x3, #1                      // the MMU off
    dsb     sy
    msr     sctlr_el1, x4
    isb
    msr     ttbr0_el1, x0
    msr     tcr_el1, x1
    msr     mair_el1, x2
    isb
    tlbi    vmalle1
    dsb     sy
    isb
    bic     x3, x3, #(1 << 19)              // what is writable may be executed
    msr     sctlr_el1, x3
    isb
    ret

    .balign 2048
    .global vectors
vectors:
    .rept   16
    .balign 128
    b       exception
    .endr

exception:
    mrs     x0, esr_el1
    mrs     x1, elr_el1
    mrs     x2, far_el1
    bl      on_exception                    // returns if there is a guard
    adrp    x9, guarded_stack
    add     x9, x9, :lo12:guarded_stack
    ldr     x9, [x9]
    mov     sp, x9
    mov     x0, #1
    b       leave_guarded

    .data
    .balign 8
    .global guarded_stack
guarded_stack:
    .quad   0
