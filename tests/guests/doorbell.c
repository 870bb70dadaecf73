/*
 * Ring doorbells: store the words 0, 1, 2, 0, 1, 2, ... at one address, where no memory is, and the half-words 0 and 1
 * at the next. Prints `rang <n>` after every tenth round of three words and two half-words.
 */
#include "rt.h"

#ifndef ADDRESS
#define ADDRESS 0xd0000000u
#endif
#define ROUNDS_PER_LINE 10

void guest_main(void)
{
        volatile u32 *words = (volatile u32 *)ADDRESS;
        volatile u16 *halves = (volatile u16 *)(ADDRESS + 4);

        for (u32 round = 1;; round++) {
                *words = 0;
                *words = 1;
                *words = 2;
                *halves = 0;
                *halves = 1;
                if (round % ROUNDS_PER_LINE)
                        continue;
                put_text("rang ");
                put_decimal(round);
                put_char('\n');
        }
}
