/* The payload's first instructions, and EL1's vectors: no exception is expected. */

.section .text.start, "ax"
.global start
start:
    adrp    x0, vectors
    add     x0, x0, :lo12:vectors
    msr     vbar_el1, x0
    ldr     x0, =stack_top
    mov     sp, x0
    ldr     x0, =bss_start
    ldr     x1, =bss_end
1:  cmp     x0, x1
    b.hs    2f
    str     xzr, [x0], #8
    b       1b
2:  bl      payload_main
3:  b       3b

.macro unexpected
    .balign 128
    mrs     x0, esr_el1
    mrs     x1, elr_el1
    mrs     x2, far_el1
    b       payload_exception
.endm

.section .text.vectors, "ax"
.balign 2048
vectors:
.rept 16
    unexpected
.endr
