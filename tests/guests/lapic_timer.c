/*
 * Periodic interrupts of the local APIC's timer, counted and printed: `lapic <n>` after every tenth.
 *
 * Document: Intel SDM volume 3, "Local APIC", APIC timer. KVM's runs at 1 GHz before the divider.
 */
#include "rt.h"

#define LAPIC_EOI 0xb0
#define LAPIC_SVR 0xf0
#define LAPIC_LVT_TIMER 0x320
#define LAPIC_INITIAL_COUNT 0x380
#define LAPIC_DIVIDE 0x3e0
#define TIMER_VECTOR 0x40
#define SPURIOUS_VECTOR 0xff
#define PERIODIC (1 << 17)
#define ENABLE (1 << 8)
#define DIVIDE_BY_16 3
#define PERIOD 625000                   /* 10 ms */
#define INTERRUPTS_PER_LINE 10

static volatile u32 interrupts;

INTERRUPT_HANDLER(timer)
{
        interrupts++;
        *lapic(LAPIC_EOI) = 0;
}

void guest_main(void)
{
        load_idt();
        setup_pic(0);
        set_gate(TIMER_VECTOR, timer);
        set_gate(SPURIOUS_VECTOR, ignore_interrupt);
        *lapic(LAPIC_SVR) = ENABLE | SPURIOUS_VECTOR;
        *lapic(LAPIC_DIVIDE) = DIVIDE_BY_16;
        *lapic(LAPIC_LVT_TIMER) = PERIODIC | TIMER_VECTOR;
        *lapic(LAPIC_INITIAL_COUNT) = PERIOD;
        for (u32 next = INTERRUPTS_PER_LINE;; next += INTERRUPTS_PER_LINE) {
                for (;;) {
                        disable_interrupts();
                        if ((int)(interrupts - next) >= 0)
                                break;
                        wait_for_interrupt();
                }
                enable_interrupts();
                put_text("lapic ");
                put_decimal(next);
                put_char('\n');
        }
}
