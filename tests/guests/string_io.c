/*
 * `rep outsb` to one test port and `rep insb` from another, in blocks of 1 to 4096 bytes at every alignment.
 *
 * Both streams are numbered: byte j is PATTERN(j), whose period is longer than any run, so that a lost or repeated byte
 * or block shows at once. The test checks what comes out and supplies what goes in; the guest checks that.
 */
#include "rt.h"

#define OUT_PORT 0x5f0
#define IN_PORT 0x5f1
#define BLOCK 4096
#define BLOCKS_PER_LINE 1
#define HASH(j) ((j) * 0x9e3779b1u)
#define PATTERN(j) ((u8)(HASH(j) >> 24))

static u8 buffer[2 * BLOCK] __attribute__((aligned(4096)));

static void send(const u8 *bytes, u32 count)
{
        __asm__ volatile("rep outsb" : "+S"(bytes), "+c"(count) : "d"(OUT_PORT) : "memory");
}

static void receive(u8 *bytes, u32 count)
{
        __asm__ volatile("rep insb" : "+D"(bytes), "+c"(count) : "d"(IN_PORT) : "memory");
}

void guest_main(void)
{
        u32 done = 0;

        for (u32 block = 1;; block++) {
                /* Every fourth block fills exactly one page; the others start anywhere and cross into the next one. */
                u32 whole = block % 4 == 0;
                u32 length = whole ? BLOCK : (HASH(block) >> 12) % BLOCK + 1;
                u8 *bytes = buffer + (whole ? 0 : HASH(block) >> 20);

                for (u32 index = 0; index < length; index++)
                        bytes[index] = PATTERN(done + index);
                send(bytes, length);
                for (u32 index = 0; index < length; index++)
                        bytes[index] = ~bytes[index];
                receive(bytes, length);
                for (u32 index = 0; index < length; index++) {
                        if (bytes[index] == PATTERN(done + index))
                                continue;
                        put_text("string BAD at ");
                        put_decimal(done + index);
                        put_char('\n');
                        halt();
                }
                done += length;
                if (block % BLOCKS_PER_LINE)
                        continue;
                put_text("string ");
                put_decimal(block);
                put_text(" bytes ");
                put_decimal(done);
                put_text(" OK\n");
        }
}
