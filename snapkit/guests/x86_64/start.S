/*
 * Entry of every tiny guest, by the PVH boot protocol (Xen public/arch-x86/hvm/start_info.h):
 * 32-bit protected mode, flat segments, paging off, interrupts off, ebx = struct hvm_start_info.
 *
 * The protocol promises neither a stack nor a descriptor table in memory, and an interrupt gate loads its code selector
 * from the table, so both are set up here. The bytes after the loaded part are zero because the loader zeroes p_memsz.
 */
        .section .note.pvh, "a", @note
        .long   4, 4, 18                /* name length, descriptor length, XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz  "Xen"
        .long   _start

        .text
        .globl  _start
_start:
        movl    $stack_top, %esp
        lgdt    gdtr
        ljmp    $8, $1f
1:      movl    $16, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %fs
        movl    %eax, %gs
        movl    %eax, %ss
        cld
        movl    %ebx, start_info
        call    guest_main
2:      cli
        hlt
        jmp     2b

        .data
        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      /* 0x08: code, base 0, 4 GiB, 32-bit */
        .quad   0x00cf93000000ffff      /* 0x10: data, base 0, 4 GiB */
        .balign 8
        .globl  gdtr
gdtr:   .word   23
        .long   gdt

        .bss
        .balign 16
        .globl  start_info
start_info:
        .skip   16
        .skip   4096
stack_top:
