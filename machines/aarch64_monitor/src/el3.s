/* The reset vector at address 0, EL3's vectors, and the way into the non-secure world. */

.section .text.reset, "ax"
.global reset
reset:
    msr     daifset, #0xf
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el3, x0
    /* MMU and caches off; the RES1 bits of SCTLR_EL3. */
    ldr     x0, =0x30c50830
    msr     sctlr_el3, x0
    msr     cptr_el3, xzr
    isb
    ldr     x0, =stack_top
    mov     sp, x0

    ldr     x0, =bss_start
    ldr     x1, =bss_end
1:  cmp     x0, x1
    b.hs    2f
    str     xzr, [x0], #8
    b       1b
2:  bl      monitor_main
3:  b       3b

/* x0: entry, x1: SPSR, x2: the world. */
.global enter_non_secure
enter_non_secure:
    msr     tpidr_el3, x2
    /* NS, RES1, HCE, RW: AArch64 below, non-secure, HVC enabled, no interrupt taken at EL3. */
    mov     x3, #0x531
    msr     scr_el3, x3
    msr     elr_el3, x0
    msr     spsr_el3, x1
    mov     x0, xzr
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    isb
    eret

.macro own
    .balign 128
    mrs     x0, esr_el3
    mrs     x1, elr_el3
    b       own_exception
.endm

.section .text.vectors, "ax"
.balign 2048
vectors:
    own
    own
    own
    own
    own
    own
    own
    own
    /* +0x400: synchronous, from AArch64 code below. */
    .balign 128
    sub     sp, sp, #256
    stp     x0, x1, [sp]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    b       lower_el_entry
    own
    own
    own
    own
    own
    own
    own

lower_el_entry:
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    str     x30, [sp, #240]
    mov     x0, sp
    mrs     x1, tpidr_el3
    mrs     x2, esr_el3
    mrs     x3, elr_el3
    bl      lower_el
    ldp     x0, x1, [sp]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    add     sp, sp, #256
    eret

/* The vector registers. They are accessed here alone: compiled code does without them. */
.arch_extension fp
.arch_extension simd

.global spoil_vectors
spoil_vectors:
    ldr     x0, =0xdeadbeef00c0ffee
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    dup     v\n\().2d, x0
.endr
    ret
