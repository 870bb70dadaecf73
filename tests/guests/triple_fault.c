/*
 * Fault with an interrupt table that has no entry, so that the fault about the fault faults as well: shutdown.
 *
 * An undefined opcode, not `int3`: KVM's emulator stops with an internal error at the latter.
 */
#include "rt.h"

void guest_main(void)
{
        static const u8 empty[6];

        put_text("triple fault\n");
        __asm__ volatile("lidt %0; ud2" : : "m"(empty));
        put_text("still here\n");
}
