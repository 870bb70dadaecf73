/*
 * Runtime of the tiny guests: ports, serial text, interrupts. One translation unit includes it, so all is static.
 *
 * Documents: PC16550D (serial), Intel 8259A and 8254, ACPI 6.5 section 4.8.3.7 (SLEEP_CONTROL_REG), Intel SDM volume 3
 * (gates, local APIC), Xen public/arch-x86/hvm/start_info.h.
 *
 * Surprise: KVM's instruction emulator, which runs guest code where the host lends no VMX or SVM, knows no `iret` in
 * protected mode. Handlers therefore return by `sti; lret`, see INTERRUPT_HANDLER.
 */
#ifndef SNAPKIT_GUESTS_RT_H
#define SNAPKIT_GUESTS_RT_H

#include "text.h"

/* The machine's addresses. */
#define COM1 0x3f8
#define COM1_IRQ 4
#define RESET_PORT 0x64
#define RESET_VALUE 0xfe
#define SLEEP_CONTROL 0x600             /* 8-bit I/O port: SLP_TYP in bits 4:2, SLP_EN bit 5 */
#define SLEEP_S5 (1 << 5 | 5 << 2)      /* 0x34: SLP_EN with the SLP_TYP that the DSDT's \_S5 names */
#define LAPIC_BASE 0xfee00000u

/* PC16550D */
#define UART_DATA (COM1 + 0)
#define UART_IER (COM1 + 1)
#define UART_MCR (COM1 + 4)
#define UART_LSR (COM1 + 5)
#define LSR_DR 0x01
#define LSR_THRE 0x20
#define IER_RX 0x01
#define MCR_OUT2 0x08                   /* on a PC, OUT2 lets the interrupt pin through */

#define PIC_VECTOR 0x20                 /* IRQ n arrives at vector 0x20 + n */
#define PIT_HZ 1193182u

struct hvm_start_info {
        u32 magic, version, flags, nr_modules;
        u32 modlist_paddr, modlist_high, cmdline_paddr, cmdline_high, rsdp_paddr, rsdp_high;
        u32 memmap_paddr, memmap_high, memmap_entries, reserved;
};

struct hvm_memmap_entry {
        u32 base, base_high, length, length_high, type, reserved;
};

#define START_INFO_MAGIC 0x336ec578u
#define MEMMAP_RAM 1

void guest_main(void);
extern const struct hvm_start_info *const start_info;
extern const u8 gdtr[6];

static inline void outb(u16 port, u8 value)
{
        __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 inb(u16 port)
{
        u8 value;

        __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
        return value;
}

static inline void enable_interrupts(void)
{
        __asm__ volatile("sti" : : : "memory");
}

static inline void disable_interrupts(void)
{
        __asm__ volatile("cli" : : : "memory");
}

/* Enable interrupts and wait for one. None is lost: `sti` takes effect after the instruction that follows it. */
static inline void wait_for_interrupt(void)
{
        __asm__ volatile("sti; hlt" : : : "memory");
}

static inline void relax(void)
{
        __asm__ volatile("pause" : : : "memory");
}

static inline __attribute__((noreturn)) void halt(void)
{
        for (;;)
                __asm__ volatile("cli; hlt" : : : "memory");
}

static inline volatile u32 *lapic(u32 offset)
{
        return (volatile u32 *)(LAPIC_BASE + offset);
}

/* COM1, polled. */

static inline void put_char(char character)
{
        while (!(inb(UART_LSR) & LSR_THRE))
                relax();
        outb(UART_DATA, character);
}

/* What was typed, or -1. */
static inline int get_char(void)
{
        return inb(UART_LSR) & LSR_DR ? inb(UART_DATA) : -1;
}

/* Interrupts. */

struct gate {
        u16 offset_low, selector, type, offset_high;
};

static struct gate idt[256];

#define SAVE_AND_CALL(body) "pushl %eax; pushl %ecx; pushl %edx; cld; call " body "; popl %edx; popl %ecx; popl %eax;"

/*
 * Return from an interrupt at the same privilege without `iret`. Arithmetic flags come back with IF still clear, `sti`
 * takes effect only after the `lret`, which takes eip and cs and drops eflags: so handlers do not nest. IF was set when
 * the interrupt came, or it would not have come.
 */
#define RETURN_FROM_INTERRUPT "andl $~0x200, 8(%esp); pushl 8(%esp); popfl; sti; lret $4"

/* Define an interrupt handler: INTERRUPT_HANDLER(timer) { ... } and then set_gate(vector, timer). */
#define INTERRUPT_HANDLER(name)                                                                        \
        void name(void);                                                                               \
        __asm__(".text; " #name ": " SAVE_AND_CALL(#name "_body") RETURN_FROM_INTERRUPT);              \
        static __attribute__((used)) void name##_body(void)

INTERRUPT_HANDLER(ignore_interrupt)
{
}

static __attribute__((used, noreturn)) void unexpected_body(void)
{
        put_text("unexpected interrupt or fault\n");
        halt();
}

void unexpected(void);
__asm__(".text; unexpected: call unexpected_body");

static inline void set_gate(u32 vector, void (*handler)(void))
{
        u32 address = (u32)handler;

        idt[vector].offset_low = address;
        idt[vector].selector = 0x08;
        idt[vector].type = 0x8e00;      /* present, 32-bit interrupt gate */
        idt[vector].offset_high = address >> 16;
}

static inline void load_idt(void)
{
        static struct {
                u16 limit;
                const void *base;
        } __attribute__((packed)) idtr;

        for (u32 vector = 0; vector < 256; vector++)
                set_gate(vector, unexpected);
        /* An edge that goes away before the acknowledge comes in as IRQ 7 of its chip (8259A, spurious interrupt). */
        set_gate(PIC_VECTOR + 7, ignore_interrupt);
        set_gate(PIC_VECTOR + 15, ignore_interrupt);
        idtr.limit = sizeof(idt) - 1;
        idtr.base = idt;
        __asm__ volatile("lidt %0" : : "m"(idtr));
}

/* Remap both 8259A and let only the IRQs of the mask through (bit n = IRQ n). */
static inline void setup_pic(u32 enabled)
{
        outb(0x20, 0x11);               /* ICW1: edge triggered, cascade, ICW4 follows */
        outb(0xa0, 0x11);
        outb(0x21, PIC_VECTOR);
        outb(0xa1, PIC_VECTOR + 8);
        outb(0x21, 1 << 2);             /* ICW3: the slave sits on IRQ 2 */
        outb(0xa1, 2);
        outb(0x21, 1);                  /* ICW4: 8086 mode */
        outb(0xa1, 1);
        outb(0x21, ~enabled & 0xff);
        outb(0xa1, ~enabled >> 8 & 0xff);
}

static inline void end_of_irq(void)
{
        outb(0x20, 0x20);               /* only IRQs of the master are used here */
}

/* PIT channel 0, mode 2 (rate generator). */
static inline void setup_pit(u32 hz)
{
        u32 divisor = (PIT_HZ + hz / 2) / hz;

        outb(0x43, 0x34);
        outb(0x40, divisor & 0xff);
        outb(0x40, divisor >> 8);
}

/* Have the handler called that often a second, from enable_interrupts() on. Each call ends in end_of_tick(). */
static inline void start_ticks(u32 hz, void (*handler)(void))
{
        load_idt();
        set_gate(PIC_VECTOR + 0, handler);
        setup_pic(1 << 0);
        setup_pit(hz);
}

static inline void end_of_tick(void)
{
        end_of_irq();
}

/* Power. */

static inline __attribute__((noreturn)) void power_off(void)
{
        outb(SLEEP_CONTROL, SLEEP_S5);
        halt();
}

static inline __attribute__((noreturn)) void reboot(void)
{
        outb(RESET_PORT, RESET_VALUE);
        halt();
}

#endif
