/*
 * Halt until a message-signalled interrupt arrives, at either of two vectors, and print `msi <vector> <n>`, n counting
 * all of them. Prints `ready` first.
 *
 * Document: Intel SDM volume 3, "Local APIC", message signalled interrupts.
 */
#include "rt.h"

#define LAPIC_EOI 0xb0
#define LAPIC_SVR 0xf0
#define SPURIOUS_VECTOR 0xff
#define ENABLE (1 << 8)
#define FIRST_VECTOR 0x51
#define SECOND_VECTOR 0x61

static volatile u32 first, second;

INTERRUPT_HANDLER(first_message)
{
        first++;
        *lapic(LAPIC_EOI) = 0;
}

INTERRUPT_HANDLER(second_message)
{
        second++;
        *lapic(LAPIC_EOI) = 0;
}

static void tell(u32 vector, u32 number)
{
        put_text("msi ");
        put_hex(vector);
        put_char(' ');
        put_decimal(number);
        put_char('\n');
}

void guest_main(void)
{
        u32 told_first = 0, told_second = 0;

        load_idt();
        setup_pic(0);
        set_gate(FIRST_VECTOR, first_message);
        set_gate(SECOND_VECTOR, second_message);
        set_gate(SPURIOUS_VECTOR, ignore_interrupt);
        *lapic(LAPIC_SVR) = ENABLE | SPURIOUS_VECTOR;
        put_text("ready\n");
        for (;;) {
                disable_interrupts();
                if (told_first == first && told_second == second) {
                        wait_for_interrupt();
                        continue;
                }
                enable_interrupts();
                if (told_first != first)
                        tell(FIRST_VECTOR, ++told_first);
                if (told_second != second)
                        tell(SECOND_VECTOR, ++told_second);
        }
}
