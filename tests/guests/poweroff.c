/* Enter S5 through the SLEEP_CONTROL register. */
#include "rt.h"

void guest_main(void)
{
        put_text("poweroff\n");
        power_off();
}
