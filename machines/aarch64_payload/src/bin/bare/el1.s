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

/* The vector registers. They are accessed here alone: compiled code does without them. */
.arch_extension fp
.arch_extension simd
.section .text.vector_registers, "ax"

/* x0: seed. */
.global fill_vectors
fill_vectors:
    mrs     x1, cpacr_el1
    orr     x1, x1, #(3 << 20)
    msr     cpacr_el1, x1
    isb
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    add     x0, x0, #1
    dup     v\n\().2d, x0
.endr
    ret

/* x0: seed. Returns how many of the 64 halves differ from what fill_vectors made of it. */
.global changed_vectors
changed_vectors:
    mov     x2, xzr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    add     x0, x0, #1
    umov    x1, v\n\().d[0]
    cmp     x1, x0
    cinc    x2, x2, ne
    umov    x1, v\n\().d[1]
    cmp     x1, x0
    cinc    x2, x2, ne
.endr
    mov     x0, x2
    ret
