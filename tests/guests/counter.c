/*
 * The busiest minimal guest, for golden files: it counts, prints `count <n>` and does nothing else. No interrupt, no
 * timer, no TSC; all that matters is a word of memory and a few registers.
 */
#include "rt.h"

#define LOOPS 30000                     /* some 60 ms where code is emulated */

void guest_main(void)
{
        for (u32 count = 1;; count++) {
                for (volatile u32 loop = 0; loop < LOOPS; loop++)
                        ;
                put_text("count ");
                put_decimal(count);
                put_char('\n');
        }
}
