/*
 * Store a running 4-byte value across a page boundary where no memory is: each store leaves KVM as two MMIO exits of
 * 4 - n and n bytes, so that a pause soon catches the guest between them. The values are 1, 2, 3, ... without a gap.
 */
#include "rt.h"

#ifndef ADDRESS
#define ADDRESS 0xd0000ffeu             /* two bytes on either side */
#endif
#ifndef STORES_PER_LINE
#define STORES_PER_LINE 500
#endif

void guest_main(void)
{
        u32 value = 0;

        for (;;) {
                for (u32 store = 0; store < STORES_PER_LINE; store++)
                        *(volatile u32 *)ADDRESS = ++value;
                put_text("cross ");
                put_decimal(value);
                put_char('\n');
        }
}
