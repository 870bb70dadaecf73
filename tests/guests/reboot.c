/* Ask for a reset the way the FADT's RESET_REG says. */
#include "rt.h"

void guest_main(const struct hvm_start_info *info)
{
        (void)info;
        put_text("reboot\n");
        reboot();
}
