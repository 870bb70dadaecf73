/*
 * LPIs of one device, counted by the CPU that takes each: event n is LPI 8192 + n and goes to CPU n % CPUS.
 *
 * A line tells of each that arrived: `L<cpu> <intid> <count>`, the count being that CPU's of that LPI since the start.
 * Orders of two characters each are taken from the serial port, and answered by themselves and `.` once they are done:
 *
 *      m<cpu> u<cpu>           mask and unmask the CPU's interrupts (PSTATE.I)
 *      d<event> e<event>       disable and enable the event's LPI
 *      i<event>                raise the event, by a command to the ITS
 *      q.                      power off
 *
 * A CPU whose interrupts are masked does not halt while one is pending.
 */
#include "rt.h"
#include "its.h"

#ifndef DEVICE
#define DEVICE 8                        /* 00:01.0 */
#endif
#ifndef CPUS
#define CPUS 2
#endif
#define EVENTS 8
#define WAKE 1                          /* an SGI */

static volatile u32 counts[CPUS][EVENTS], told[CPUS][EVENTS];
static volatile u32 mask_wanted[CPUS], masked[CPUS], there[CPUS];
static volatile char typed[16];
static volatile u32 typed_len, taken_len;

static void wake(u32 cpu)
{
        barrier();
        write_register(icc_sgi1r_el1, WAKE << 24 | 1 << cpu);
}

static void take_input(void)
{
        for (int character; (character = get_char()) >= 0;)
                typed[typed_len++ % sizeof(typed)] = character;
}

static void interrupted(u32 intid)
{
        u32 cpu = this_cpu();

        if (intid == UART_INTID)
                take_input();
        if (intid < LPI_BASE)
                return;
        counts[cpu][(intid - LPI_BASE) % EVENTS]++;
        if (cpu)
                wake(0);
}

static void tell_counts(void)
{
        for (u32 cpu = 0; cpu < CPUS; cpu++) {
                for (u32 event = 0; event < EVENTS; event++) {
                        u32 count = counts[cpu][event];

                        if (count == told[cpu][event])
                                continue;
                        told[cpu][event] = count;
                        put_char('L');
                        put_decimal(cpu);
                        put_char(' ');
                        put_decimal(LPI_BASE + event);
                        put_char(' ');
                        put_decimal(count);
                        put_char('\n');
                }
        }
}

static void set_masked(u32 cpu, u32 wanted)
{
        mask_wanted[cpu] = wanted;
        if (!cpu) {
                masked[0] = wanted;
                return;
        }
        wake(cpu);
        while (masked[cpu] != wanted)
                relax();
}

static void obey(char order, u32 number)
{
        if (order == 'm' || order == 'u')
                set_masked(number % CPUS, order == 'm');
        if (order == 'd' || order == 'e')
                enable_lpi(DEVICE, number, LPI_BASE + number, order == 'e');
        if (order == 'i')
                raise_event(DEVICE, number);
        if (order == 'q')
                power_off();
        put_char(order);
        put_decimal(number);
        put_text(".\n");
}

/* What a CPU does for ever; the first one obeys orders and tells what is new. */
static void serve(u32 cpu)
{
        for (;;) {
                disable_interrupts();
                if (!cpu) {
                        take_input();
                        tell_counts();
                        for (; typed_len - taken_len >= 2; taken_len += 2)
                                obey(typed[taken_len % sizeof(typed)], typed[(taken_len + 1) % sizeof(typed)] - '0');
                }
                masked[cpu] = mask_wanted[cpu];
                if (masked[cpu])
                        __asm__ volatile("wfi" : : : "memory");
                else
                        wait_for_interrupt();
        }
}

static void setup_cpu(u32 cpu)
{
        setup_cpu_interface(WAKE);
        enable_lpis();
        there[cpu] = 1;
}

void secondary_main(u64 cpu)
{
        setup_cpu(cpu);
        serve(cpu);
}

void guest_main(void)
{
        interrupt_handler = interrupted;
        put_text("lpi\n");
        setup_distributor();
        setup_cpu(0);
        for (u32 cpu = 1; cpu < CPUS; cpu++) {
                start_cpu(cpu);
                while (!there[cpu])
                        relax();
        }
        setup_its();
        map_device(DEVICE);
        for (u32 cpu = 0; cpu < CPUS; cpu++)
                map_collection(cpu);
        for (u32 event = 0; event < EVENTS; event++)
                map_event(DEVICE, event, LPI_BASE + event, event % CPUS);
        enable_shared(UART_INTID);
        *at32(UART_IMSC) = INTERRUPTS_RECEIVED;
        put_text("ready\n");
        serve(0);
}
