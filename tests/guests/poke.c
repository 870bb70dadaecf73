/*
 * Do what is asked for over COM1, a line at a time, and answer each with one line: a driver that is written elsewhere has
 * its accesses made by real instructions. Prints `ready` first. Numbers are hexadecimal, addresses have up to 64 bits.
 *
 *   r WIDTH ADDRESS            read 1, 2, 4 or, in 64-bit code, 8 bytes                     -> the value
 *   w WIDTH ADDRESS VALUE      write the same                                               -> ok
 *   i WIDTH PORT               in                                                           -> the value
 *   o WIDTH PORT VALUE         out                                                          -> ok
 *   l ADDRESS LENGTH           read bytes                                                   -> them, two digits each
 *   s ADDRESS BYTES            write bytes, two digits each                                 -> ok
 *   c VECTOR                   how many interrupts came at a vector                         -> the count
 *   h VECTOR COUNT             halt until that many have                                    -> the count
 *   z                          forget all counts and causes                                 -> ok
 *   a VECTOR READ WRITE        have the handler copy a word from READ to WRITE (0: nowhere) -> ok
 *   g VECTOR                   all bits that these words had                                -> the value
 *   p PRIORITY                 let only interrupts above it through (task priority)         -> ok
 *   d, e                       cli, after which input is polled; sti                        -> ok
 *
 * Anything else is answered by `what`. The handlers of vectors 0x30 to 0xef count and acknowledge at the local APIC. COM1
 * itself interrupts through the 8259A, which the task priority does not hold back.
 *
 * Documents: Intel SDM volume 3, "Local APIC", "4-level paging" and "Initializing IA-32e mode". Addresses above 4 GiB are
 * reached through a window: paging, and so long mode, is on for that one access, without interrupts, which would want a
 * table of their own there. PAE paging, which would do as well, is no mode of every KVM.
 */
#include "rt.h"

#define LAPIC_TPR 0x80
#define LAPIC_EOI 0xb0
#define LAPIC_SVR 0xf0
#define SPURIOUS_VECTOR 0xff
#define ENABLE (1 << 8)
#define UART_FCR (COM1 + 2)
#define FCR_FE 0x01
#define FIRST_VECTOR 0x30
#define VECTORS 0xc0
#define LINE_LEN 256
#define STUB_LEN 16

#define WINDOW 0x80000000u              /* where the window is seen */
#define LARGE_PAGE (1 << 21)
#define PRESENT_WRITABLE 0x03
#define PRESENT_WRITABLE_LARGE 0x83
#define EFER 0xc0000080u
#define EFER_LME (1 << 8)
#define CODE_64 0x18
#define CR4_PAE (1 << 5)
#define CR0_PG (1u << 31)

static volatile u32 counts[256], causes[256];
static volatile u32 *cause_at[256], *acknowledge_at[256];
static char line[LINE_LEN];
static volatile u32 length;
static volatile int complete;
static const char *next;
static int wrong, closed;
static u64 transfer;
static u64 own[512] __attribute__((aligned(4096))), window[512] __attribute__((aligned(4096)));
static u64 pointers[512] __attribute__((aligned(4096))), root[512] __attribute__((aligned(4096)));

/* One stub for each vector: its number, then the common part, which hands it to the body. */
__asm__(".text; .balign 16; stubs:"
        ".set vector, 0x30; .rept 0xc0; .balign 16; .byte 0x68; .long vector; jmp common; .set vector, vector + 1; .endr;"
        "common: pushl %eax; pushl %ecx; pushl %edx; cld; pushl 12(%esp); call interrupted; addl $4, %esp;"
        "popl %edx; popl %ecx; popl %eax; addl $4, %esp;" RETURN_FROM_INTERRUPT);
extern char stubs[];

static __attribute__((used)) void interrupted(u32 vector)
{
        counts[vector]++;
        if (cause_at[vector]) {
                u32 cause = *cause_at[vector];

                causes[vector] |= cause;
                if (acknowledge_at[vector])
                        *acknowledge_at[vector] = cause;
        }
        *lapic(LAPIC_EOI) = 0;
}

static void take_input(void)
{
        while (inb(UART_LSR) & LSR_DR) {
                char character = inb(UART_DATA);

                if (character == '\n')
                        complete = 1;
                else if (length < LINE_LEN - 1)
                        line[length++] = character;
        }
}

INTERRUPT_HANDLER(serial)
{
        take_input();
        end_of_irq();
}

/* The line. */

static u32 digit(void)
{
        u32 value = *next - '0';

        if (value > 9)
                value = *next - 'a' + 10;
        if (value > 15) {
                wrong = 1;
                return 0;
        }
        next++;
        return value;
}

static u64 number(void)
{
        u64 value = 0;

        if (*next++ != ' ')
                wrong = 1;
        do
                value = value << 4 | digit();
        while (!wrong && *next && *next != ' ');
        return value;
}

static void put_digits(u32 value, int digits)
{
        while (digits--)
                outb(UART_DATA, "0123456789abcdef"[value >> 4 * digits & 15]);
}

static void ok(void)
{
        put_text("ok");
}

/* Accesses. */

static const u64 gdt[] = {
        0,
        0x00cf9b000000ffff,             /* 0x08, 0x10: what start.S has there */
        0x00cf93000000ffff,
        0x00af9b000000ffff,             /* 0x18: code, 64-bit */
};

static void set_paging(u32 on)
{
        u32 cr0;

        __asm__ volatile("movl %%cr0, %0" : "=r"(cr0));
        cr0 = on ? cr0 | CR0_PG : cr0 & ~CR0_PG;
        __asm__ volatile("movl %0, %%cr0; jmp 1f; 1:" : : "r"(cr0) : "memory");
}

static void setup_long_mode(void)
{
        static struct {
                u16 limit;
                const void *base;
        } __attribute__((packed)) own_gdtr = {sizeof(gdt) - 1, gdt};
        u32 cr4;

        __asm__ volatile("lgdt %0" : : "m"(own_gdtr));
        own[0] = PRESENT_WRITABLE_LARGE;        /* the guest lies in the first 2 MiB, as seen and as it is */
        pointers[0] = (u32)own | PRESENT_WRITABLE;
        pointers[WINDOW >> 30] = (u32)window | PRESENT_WRITABLE;
        root[0] = (u32)pointers | PRESENT_WRITABLE;
        __asm__ volatile("movl %%cr4, %0" : "=r"(cr4));
        __asm__ volatile("movl %0, %%cr4" : : "r"(cr4 | CR4_PAE) : "memory");
        __asm__ volatile("wrmsr" : : "c"(EFER), "a"(EFER_LME), "d"(0) : "memory");
}

/* Make a physical address reachable, in long mode if it has to be; `leave` when the access is done. */
static u32 enter(u64 address, u32 width)
{
        if (!(address >> 32) && width < 8)
                return address;
        disable_interrupts();
        window[0] = (address & ~(u64)(LARGE_PAGE - 1)) | PRESENT_WRITABLE_LARGE;
        __asm__ volatile("movl %0, %%cr3" : : "r"(root) : "memory");
        set_paging(1);
        return WINDOW | (address & (LARGE_PAGE - 1));
}

static void leave(u64 address, u32 width)
{
        if (!(address >> 32) && width < 8)
                return;
        set_paging(0);
        if (!closed)
                enable_interrupts();
}

/* Copy eight bytes in 64-bit code, from where a far jump leads and a far return comes back. */
static void copy_wide(volatile void *to, const volatile void *from)
{
        __asm__ volatile("pushl $8; pushl $2f; ljmp %0, $1f; .code64;"
                         "1: movl %%ecx, %%ecx; movl %%edi, %%edi; movq (%%rcx), %%rax; movq %%rax, (%%rdi); lret;"
                         ".code32; 2:"
                         : : "i"(CODE_64), "c"(from), "D"(to) : "eax", "memory", "cc");
}

static u64 load(u64 address, u32 width)
{
        u32 at = enter(address, width);
        u64 value = 0;

        if (width == 1)
                value = *(volatile u8 *)at;
        else if (width == 2)
                value = *(volatile u16 *)at;
        else if (width == 4)
                value = *(volatile u32 *)at;
        else
                copy_wide(&transfer, (void *)at);
        leave(address, width);
        return width == 8 ? transfer : value;
}

static void store(u64 address, u32 width, u64 value)
{
        u32 at = enter(address, width);

        transfer = value;
        if (width == 1)
                *(volatile u8 *)at = value;
        else if (width == 2)
                *(volatile u16 *)at = value;
        else if (width == 4)
                *(volatile u32 *)at = value;
        else
                copy_wide((void *)at, &transfer);
        leave(address, width);
}

static int good_width(u64 width)
{
        return width == 1 || width == 2 || width == 4;
}

static u32 in(u16 port, u32 width)
{
        u32 value = 0;

        if (width == 1)
                __asm__ volatile("inb %w1, %b0" : "+a"(value) : "d"(port));
        else if (width == 2)
                __asm__ volatile("inw %w1, %w0" : "+a"(value) : "d"(port));
        else
                __asm__ volatile("inl %w1, %0" : "+a"(value) : "d"(port));
        return value;
}

static void out(u16 port, u32 width, u32 value)
{
        if (width == 1)
                __asm__ volatile("outb %b0, %w1" : : "a"(value), "d"(port));
        else if (width == 2)
                __asm__ volatile("outw %w0, %w1" : : "a"(value), "d"(port));
        else
                __asm__ volatile("outl %0, %w1" : : "a"(value), "d"(port));
}

/* Commands. What is wrong is seen before anything is done. */

static void read_memory(void)
{
        u64 width = number(), address = number(), value;

        if (width != 8 && !good_width(width))
                wrong = 1;
        if (wrong)
                return;
        value = load(address, width);
        if (width == 8)
                put_digits(value >> 32, 8);
        put_digits(value, width == 8 ? 8 : 2 * width);
}

static void write_memory(void)
{
        u64 width = number(), address = number(), value = number();

        if (width != 8 && !good_width(width))
                wrong = 1;
        if (wrong)
                return;
        store(address, width, value);
        ok();
}

static void read_port(void)
{
        u64 width = number(), port = number();

        if (wrong || !good_width(width))
                wrong = 1;
        else
                put_digits(in(port, width), 2 * width);
}

static void write_port(void)
{
        u64 width = number(), port = number(), value = number();

        if (wrong || !good_width(width)) {
                wrong = 1;
                return;
        }
        out(port, width, value);
        ok();
}

static void read_bytes(void)
{
        u64 address = number(), count = number();

        while (!wrong && count--)
                put_digits(load(address++, 1), 2);
}

static void write_bytes(void)
{
        u64 address = number();

        if (*next++ != ' ')
                wrong = 1;
        while (!wrong && *next) {
                u32 high = digit(), low = digit();

                if (!wrong)
                        store(address++, 1, high << 4 | low);
        }
        if (!wrong)
                ok();
}

static void wait_for_count(void)
{
        u32 vector = number() & 255, count = number();

        while (!wrong) {
                disable_interrupts();
                if ((int)(counts[vector] - count) >= 0)
                        break;
                wait_for_interrupt();
        }
        if (!closed)
                enable_interrupts();
        if (!wrong)
                put_digits(counts[vector], 8);
}

static void forget(void)
{
        for (u32 vector = 0; vector < 256; vector++)
                counts[vector] = causes[vector] = 0;
        ok();
}

static void set_acknowledge(void)
{
        u32 vector = number() & 255, cause = number(), acknowledge = number();

        if (wrong)
                return;
        cause_at[vector] = (volatile u32 *)cause;
        acknowledge_at[vector] = (volatile u32 *)acknowledge;
        ok();
}

static void show(volatile u32 *table)
{
        u32 vector = number() & 255;

        if (!wrong)
                put_digits(table[vector], 8);
}

static void set_priority(void)
{
        u32 priority = number();

        if (wrong)
                return;
        *lapic(LAPIC_TPR) = priority;
        ok();
}

static void execute(void)
{
        next = line + 1;
        wrong = 0;
        switch (*line) {
        case 'r': read_memory(); break;
        case 'w': write_memory(); break;
        case 'i': read_port(); break;
        case 'o': write_port(); break;
        case 'l': read_bytes(); break;
        case 's': write_bytes(); break;
        case 'c': show(counts); break;
        case 'g': show(causes); break;
        case 'h': wait_for_count(); break;
        case 'z': forget(); break;
        case 'a': set_acknowledge(); break;
        case 'p': set_priority(); break;
        case 'd': disable_interrupts(); closed = 1; ok(); break;
        case 'e': closed = 0; ok(); break;
        default: wrong = 1;
        }
        if (wrong)
                put_text("what");
}

void guest_main(void)
{
        load_idt();
        for (u32 index = 0; index < VECTORS; index++)
                set_gate(FIRST_VECTOR + index, (void (*)(void))(stubs + index * STUB_LEN));
        set_gate(PIC_VECTOR + COM1_IRQ, serial);
        set_gate(SPURIOUS_VECTOR, ignore_interrupt);
        setup_long_mode();
        setup_pic(1 << COM1_IRQ);
        *lapic(LAPIC_SVR) = ENABLE | SPURIOUS_VECTOR;
        outb(UART_FCR, FCR_FE);
        outb(UART_MCR, MCR_OUT2);
        outb(UART_IER, IER_RX);
        put_text("ready\n");
        for (;;) {
                disable_interrupts();
                if (!complete) {
                        if (closed)
                                take_input();
                        else
                                wait_for_interrupt();
                        continue;
                }
                line[length] = 0;
                length = 0;
                complete = 0;
                if (!closed)
                        enable_interrupts();
                execute();
                outb(UART_DATA, '\n');
        }
}
