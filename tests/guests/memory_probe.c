/*
 * Write a word at several places of each piece of RAM that the memory map names below 4 GiB, read all of them back, and
 * go on reading: `probe <address>` for each, then `probes <n> OK` and `verify <round> OK` for ever. What lies in the
 * first 2 MiB is only written at the last word, the rest there is the guest's own and the loader's.
 */
#include "rt.h"

#define PROBES 64
#define OWN_END 0x200000u
#define LOOPS_PER_ROUND 30000

static u32 probes[PROBES];
static u32 known;

static u32 pattern(u32 address)
{
        return address * 0x9e3779b1u ^ 0x5a5aa5a5u;
}

static void probe(u32 address)
{
        address &= ~3u;
        if (known == PROBES || (address < OWN_END && address != OWN_END - 4))
                return;
        put_text("probe ");
        put_hex(address);
        put_char('\n');
        probes[known++] = address;
}

static void verify(void)
{
        for (u32 index = 0; index < known; index++) {
                u32 value = *(volatile u32 *)probes[index];

                if (value == pattern(probes[index]))
                        continue;
                put_text("BAD at ");
                put_hex(probes[index]);
                put_text(" is ");
                put_hex(value);
                put_char('\n');
                halt();
        }
}

void guest_main(void)
{
        const struct hvm_memmap_entry *map = (const void *)start_info->memmap_paddr;

        if (start_info->magic != START_INFO_MAGIC || start_info->version < 1) {
                put_text("BAD start info\n");
                halt();
        }
        for (u32 index = 0; index < start_info->memmap_entries; index++) {
                u32 base = map[index].base, length = map[index].length;

                if (map[index].type != MEMMAP_RAM || map[index].base_high || map[index].length_high || length < 4)
                        continue;
                for (u32 part = 0; part < 8; part++)
                        probe(base + length / 8 * part);
                probe(base + length - 4);
        }
        for (u32 index = 0; index < known; index++)
                *(volatile u32 *)probes[index] = pattern(probes[index]);
        verify();
        put_text("probes ");
        put_decimal(known);
        put_text(" OK\n");
        for (u32 round = 1;; round++) {
                for (volatile u32 loop = 0; loop < LOOPS_PER_ROUND; loop++)
                        ;
                verify();
                put_text("verify ");
                put_decimal(round);
                put_text(" OK\n");
        }
}
