/*
 * Entry of every tiny guest, as of an arm64 Linux (Documentation/arch/arm64/booting.rst): EL1, MMU off, interrupts masked,
 * x0 = the device tree. CPUs that start_cpu() of rt.h switches on enter at start_secondary, with their number in x0.
 *
 * The MMU is switched on with what the loader wrote, and before anything is stored: caches are coherent from then on. Its
 * one table maps addresses to themselves: 2 GiB of devices, 2 GiB of RAM. The bytes after the loaded part are zero because
 * the loader zeroes p_memsz.
 */
#define MAIR 0xff                       /* attribute 0: memory, write-back; 1: device, nGnRnE */
#define TCR 0x803520                    /* EPD1; SH0 inner, write-back walks; 4 KiB pages; T0SZ 32: 4 entries of 1 GiB */
#define SCTLR_MMU_AND_CACHES 0x1005     /* I, C, M */
#define BLOCK_DEVICE 0x60000000000405   /* UXN, PXN, AF, attribute 1 */
#define BLOCK_RAM 0x701                 /* AF, inner shareable, attribute 0 */

        .macro  switch_mmu_on
        adrp    x1, vectors
        add     x1, x1, :lo12:vectors
        msr     vbar_el1, x1
        mov     x1, #MAIR
        msr     mair_el1, x1
        ldr     x1, =TCR
        msr     tcr_el1, x1
        adrp    x1, table
        add     x1, x1, :lo12:table
        msr     ttbr0_el1, x1
        isb
        mrs     x1, sctlr_el1
        mov     x2, #SCTLR_MMU_AND_CACHES
        orr     x1, x1, x2
        msr     sctlr_el1, x1
        isb
        .endm

        .text
        .globl  _start
_start:
        switch_mmu_on
        adrp    x1, fdt
        str     x0, [x1, :lo12:fdt]
        adrp    x1, stacks_end
        add     x1, x1, :lo12:stacks_end
        mov     sp, x1
        bl      guest_main
1:      msr     daifset, #15
        wfi
        b       1b

        .globl  start_secondary
        .weak   secondary_main
start_secondary:
        switch_mmu_on
        adrp    x1, stacks_end
        add     x1, x1, :lo12:stacks_end
        sub     x1, x1, x0, lsl #12
        mov     sp, x1
        bl      secondary_main
        b       1b

irq:
        stp     x0, x1, [sp, #-160]!
        stp     x2, x3, [sp, #16]
        stp     x4, x5, [sp, #32]
        stp     x6, x7, [sp, #48]
        stp     x8, x9, [sp, #64]
        stp     x10, x11, [sp, #80]
        stp     x12, x13, [sp, #96]
        stp     x14, x15, [sp, #112]
        stp     x16, x17, [sp, #128]
        stp     x18, x30, [sp, #144]
        bl      take_interrupt          /* does not nest: ELR_EL1 and SPSR_EL1 stay */
        ldp     x2, x3, [sp, #16]
        ldp     x4, x5, [sp, #32]
        ldp     x6, x7, [sp, #48]
        ldp     x8, x9, [sp, #64]
        ldp     x10, x11, [sp, #80]
        ldp     x12, x13, [sp, #96]
        ldp     x14, x15, [sp, #112]
        ldp     x16, x17, [sp, #128]
        ldp     x18, x30, [sp, #144]
        ldp     x0, x1, [sp], #160
        eret

        /* 16 entries: only interrupts at EL1 on this stack are expected. */
        .balign 2048
vectors:
        .rept   5
        b       unexpected
        .balign 128
        .endr
        b       irq
        .balign 128
        .rept   10
        b       unexpected
        .balign 128
        .endr

        .section .rodata
        .balign 32
table:  .quad   0x00000000 + BLOCK_DEVICE
        .quad   0x40000000 + BLOCK_DEVICE
        .quad   0x80000000 + BLOCK_RAM
        .quad   0xc0000000 + BLOCK_RAM

        .bss
        .balign 16
        .globl  fdt
fdt:    .skip   16
        .skip   8 * 4096                /* of eight CPUs, the first one's highest */
stacks_end:
