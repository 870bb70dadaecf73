/* Ask for a reset the way the FADT's RESET_REG says. */
#include "rt.h"

void guest_main(void)
{
        put_text("reboot\n");
        reboot();
}
