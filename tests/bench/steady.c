/*
 * The two things that the benches need of a guest, for ever: exits of one kind only (bytes to a port that nobody has), or,
 * with CHATTER, output without a pause.
 */
#include "rt.h"

#define POST_CODE 0x80                  /* a PC's power-on self test shows its progress here; no device of ours does */

void guest_main(void)
{
        put_text("steady\n");
        for (;;) {
#ifdef CHATTER
                put_char('.');
#else
                outb(POST_CODE, 0);
#endif
        }
}
