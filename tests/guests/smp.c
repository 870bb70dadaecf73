/*
 * Every CPU counts in its own word; the first one starts the others by INIT and SIPI and prints all counters:
 * `smp <line> cpus <started> counts <c0> <c1> ...`, indexed by APIC id.
 *
 * Documents: Intel SDM volume 3, "Local APIC" (ICR) and "MP initialization protocol".
 */
#include "rt.h"

#define MAX_CPUS 8
#define TRAMPOLINE 0x8000               /* below 1 MiB, page aligned: the SIPI vector is its page number */
#define LAPIC_ID 0x20
#define LAPIC_SVR 0xf0
#define LAPIC_ICR 0x300
#define ICR_INIT_OTHERS 0x000c4500      /* INIT, assert, all excluding self */
#define ICR_STARTUP_OTHERS 0x000c4600   /* SIPI, likewise */
#define ICR_PENDING (1 << 12)
#define LOOPS_PER_LINE 5000

static struct {
        volatile u32 count;
        u32 unused[15];                 /* one cache line each */
} cpus[MAX_CPUS];
static volatile u32 started[MAX_CPUS];

extern const u8 trampoline[], trampoline_end[];

__asm__(".text; .code16;"
        "trampoline:"
        "  cli;"
        "  movw %cs, %ax;"
        "  movw %ax, %ds;"
        "  lgdtl trampoline_gdtr - trampoline;"
        "  movl %cr0, %eax;"
        "  orb $1, %al;"
        "  movl %eax, %cr0;"
        "  ljmpl $8, $application_cpu;"
        "trampoline_gdtr: .skip 6;"     /* a copy of gdtr, which 16-bit code cannot reach above 1 MiB */
        "trampoline_end:"
        ".code32;"
        "application_cpu:"
        "  movl $16, %eax;"
        "  movl %eax, %ds;"
        "  movl %eax, %es;"
        "  movl %eax, %ss;"
        "  movl $0xfee00020, %eax;"
        "  movl (%eax), %eax;"
        "  shrl $24, %eax;"
        "  cmpl $8, %eax;"
        "  jae 2f;"
        "  movl $1, started(,%eax,4);"
        "  shll $6, %eax;"              /* counting needs no stack */
        "1: incl cpus(%eax);"
        "  jmp 1b;"
        "2: cli; hlt; jmp 2b");

static void send_ipi(u32 command)
{
        *lapic(LAPIC_ICR) = command;
        while (*lapic(LAPIC_ICR) & ICR_PENDING)
                relax();
}

static void start_others(void)
{
        u8 *target = (u8 *)TRAMPOLINE;
        u32 length = trampoline_end - trampoline;

        __asm__("" : "+r"(target));     /* gcc takes a pointer made from a small number for a mistake */
        for (u32 index = 0; index < length; index++)
                target[index] = trampoline[index];
        for (u32 index = 0; index < 6; index++)
                target[length - 6 + index] = gdtr[index];
        *lapic(LAPIC_SVR) = 0x1ff;
        send_ipi(ICR_INIT_OTHERS);
        for (volatile u32 loop = 0; loop < 10000; loop++)
                ;
        send_ipi(ICR_STARTUP_OTHERS | TRAMPOLINE >> 12);
}

void guest_main(void)
{
        u32 self = *lapic(LAPIC_ID) >> 24;

        started[self] = 1;
        start_others();
        for (u32 line = 1;; line++) {
                u32 total = 0, there = 0;       /* one more may come up while a line is printed */

                for (u32 loop = 0; loop < LOOPS_PER_LINE; loop++)
                        cpus[self].count++;
                for (u32 cpu = 0; cpu < MAX_CPUS; cpu++) {
                        if (!started[cpu])
                                continue;
                        total++;
                        there |= 1 << cpu;
                }
                put_text("smp ");
                put_decimal(line);
                put_text(" cpus ");
                put_decimal(total);
                put_text(" counts");
                for (u32 cpu = 0; cpu < MAX_CPUS; cpu++) {
                        if (!(there >> cpu & 1))
                                continue;
                        put_char(' ');
                        put_decimal(cpus[cpu].count);
                }
                put_char('\n');
        }
}
