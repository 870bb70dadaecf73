/*
 * The demo guest: a timer interrupt, a count, and work whose result depends on every word of memory that it ever wrote.
 *
 * Line n of its output is a function of n alone (snapkit/guests/expected.py computes the same), so a line that is lost,
 * repeated or wrong after a restore shows. `q` typed powers off.
 */
#include "rt.h"

#define HZ 100
#define TICKS_PER_LINE 10
#define WORDS 8192                      /* 32 KiB: about half of the time between two lines where code is emulated */

static volatile u32 ticks;
static u32 area[WORDS];

INTERRUPT_HANDLER(timer)
{
        ticks++;
        end_of_tick();
}

/* Carry a checksum through the whole area and the area through the checksum. */
static u32 work(u32 checksum)
{
        for (u32 index = 0; index < WORDS; index++) {
                checksum = (checksum << 5 | checksum >> 27) + (area[index] ^ index);
                area[index] = checksum * 1664525u + 1013904223u;
        }
        return checksum;
}

static void poll_input(void)
{
        if (get_char() == 'q') {
                put_text("bye\n");
                power_off();
        }
}

void guest_main(void)
{
        u32 checksum = 0, sum = 0;

        put_text("hello from the snapkit demo guest\n");
        start_ticks(HZ, timer);
        enable_interrupts();
        for (u32 next = TICKS_PER_LINE;; next += TICKS_PER_LINE) {
                checksum = work(checksum);
                sum += checksum;
                for (;;) {
                        poll_input();
                        disable_interrupts();
                        if ((int)(ticks - next) >= 0)
                                break;
                        wait_for_interrupt();
                }
                enable_interrupts();
                put_text("tick ");
                put_decimal(next);
                put_text(" work ");
                put_hex(checksum);
                put_text(" sum ");
                put_hex(sum);
                put_char('\n');
        }
}
