/* Enter S5 through the SLEEP_CONTROL register. */
#include "rt.h"

void guest_main(const struct hvm_start_info *info)
{
        (void)info;
        put_text("poweroff\n");
        power_off();
}
