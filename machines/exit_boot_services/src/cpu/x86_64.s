# The exceptions of machine exit-boot-services on x86-64. Arguments are those of the Microsoft ABI: rcx, rdx, r8, r9.

    .text

# guarded(function: rcx, argument: rdx) -> 0, or 1 after an exception in it.
    .global guarded
guarded:
    pushq   %rbx
    pushq   %rbp
    pushq   %rdi
    pushq   %rsi
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    subq    $40, %rsp                       # where the callee keeps its arguments, and alignment
    movq    %rsp, guarded_stack(%rip)
    movq    %rcx, %rax
    movq    %rdx, %rcx
    callq   *%rax
    xorl    %eax, %eax
leave_guarded:
    movq    $0, guarded_stack(%rip)
    addq    $40, %rsp
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %rsi
    popq    %rdi
    popq    %rbp
    popq    %rbx
    retq

# enter(stack: rcx, function: rdx, argument: r8): does not return.
    .global enter
enter:
    movq    %rcx, %rsp
    subq    $32, %rsp
    movq    %r8, %rcx
    callq   *%rdx
    ud2

# load_segments(): CS 8, the others 16.
    .global load_segments
load_segments:
    popq    %rax
    pushq   $8
    pushq   %rax
    movl    $16, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    xorl    %eax, %eax
    movl    %eax, %fs
    movl    %eax, %gs
    lretq

# What each exception pushes ends up alike: vector, error code, RIP.
    .balign 16
    .global exception_stubs
exception_stubs:
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

exception:
    cld
    movq    0(%rsp), %rcx
    movq    8(%rsp), %rdx
    movq    16(%rsp), %r8
    movq    %cr2, %r9
    andq    $-16, %rsp
    subq    $32, %rsp
    callq   on_exception                    # returns if there is a guard
    movq    guarded_stack(%rip), %rsp
    movl    $1, %eax
    jmp     leave_guarded

    .data
    .balign 8
    .global guarded_stack
guarded_stack:
    .quad   0
