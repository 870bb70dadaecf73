/*
 * Every CPU counts in its own word; the first one switches the others on by PSCI and prints all counters:
 * `smp <line> cpus <started> counts <c0> <c1> ...`.
 */
#include "rt.h"

#define LOOPS_PER_LINE 100000

static struct {
        volatile u32 count, started;
        u32 unused[14];                 /* one cache line each */
} cpus[CPUS_MAX];

void secondary_main(u64 cpu)
{
        cpus[cpu].started = 1;
        for (;;)
                cpus[cpu].count++;
}

void guest_main(void)
{
        u32 there = 1;

        cpus[0].started = 1;
        while (there < CPUS_MAX && !start_cpu(there)) {
                while (!cpus[there].started)
                        relax();
                there++;
        }
        for (u32 line = 1;; line++) {
                for (u32 loop = 0; loop < LOOPS_PER_LINE; loop++)
                        cpus[0].count++;
                put_text("smp ");
                put_decimal(line);
                put_text(" cpus ");
                put_decimal(there);
                put_text(" counts");
                for (u32 cpu = 0; cpu < there; cpu++) {
                        put_char(' ');
                        put_decimal(cpus[cpu].count);
                }
                put_char('\n');
        }
}
