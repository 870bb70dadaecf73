/*
 * Halt until the serial port interrupts, and echo each byte that it brought: `got <c>`, with what is not printable as
 * its hex number. Prints `ready` first.
 */
#include "rt.h"

#define QUEUE 64

static volatile u8 queue[QUEUE];
static volatile u32 arrived;

INTERRUPT_HANDLER(serial)
{
        while (inb(UART_LSR) & LSR_DR)
                queue[arrived++ % QUEUE] = inb(UART_DATA);
        end_of_irq();
}

void guest_main(void)
{
        u32 taken = 0;

        load_idt();
        set_gate(PIC_VECTOR + COM1_IRQ, serial);
        setup_pic(1 << COM1_IRQ);
        outb(UART_MCR, MCR_OUT2);
        outb(UART_IER, IER_RX);
        put_text("ready\n");
        for (;;) {
                disable_interrupts();
                if (taken == arrived) {
                        wait_for_interrupt();
                        continue;
                }
                u8 byte = queue[taken++ % QUEUE];

                enable_interrupts();
                put_text("got ");
                if (byte > ' ' && byte < 0x7f)
                        put_char(byte);
                else
                        put_hex(byte);
                put_char('\n');
        }
}
