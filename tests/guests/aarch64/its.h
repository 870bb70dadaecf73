/*
 * A driver of the interrupt translation service: events of devices become LPIs of CPUs. One translation unit includes it,
 * behind rt.h.
 *
 * Document: Arm Generic Interrupt Controller architecture version 3 (IHI 0069), chapters 5 (LPIs) and 12 (registers).
 *
 * Tables lie in the guest's own memory, each aligned to 64 KiB, which is the size of KVM's pages of them.
 */
#ifndef SNAPKIT_GUESTS_ITS_H
#define SNAPKIT_GUESTS_ITS_H

#define ITS_LEN 0x20000
#define GITS_CTLR 0x0
#define GITS_CBASER 0x80
#define GITS_CWRITER 0x88
#define GITS_CREADR 0x90
#define GITS_BASER 0x100
#define BASERS 8
#define BASER_TYPE(baser) ((baser) >> 56 & 7)
#define BASER_DEVICES 1
#define BASER_COLLECTIONS 4
#define BASER_PAGE_64K (2 << 8)
#define TABLE_VALID (1ull << 63)
#define WRITE_BACK (7ull << 59 | 1 << 10)               /* inner cacheable, inner shareable */

#define COMMAND_INT 0x03
#define COMMAND_SYNC 0x05
#define COMMAND_MAPD 0x08
#define COMMAND_MAPC 0x09
#define COMMAND_MAPTI 0x0a
#define COMMAND_INV 0x0c
#define COMMAND_LEN 32

#define GICR_PROPBASER 0x70
#define GICR_PENDBASER 0x78
#define LPIS_WRITE_BACK (7 << 7 | 1 << 10)
#define CTLR_ENABLE_LPIS (1 << 0)
#define LPI_BASE 8192
#define LPI_ID_BITS 14
#define LPIS ((1 << LPI_ID_BITS) - LPI_BASE)
#define LPI_PRIORITY 0xa0
#define LPI_ENABLE 1

#define EVENT_BITS 5
#define TABLE_LEN 0x10000

static u8 device_table[TABLE_LEN] __attribute__((aligned(TABLE_LEN)));
static u8 collection_table[TABLE_LEN] __attribute__((aligned(TABLE_LEN)));
static u8 pending_tables[2][TABLE_LEN] __attribute__((aligned(TABLE_LEN)));
static struct {
        volatile u64 commands[4096 / 8];
        volatile u8 configuration[LPIS];                /* wants 4 KiB, and has it behind the commands */
        u64 events[1 << EVENT_BITS] __attribute__((aligned(256)));
} its_memory __attribute__((aligned(TABLE_LEN)));
static u64 its;

/* Have the ITS execute a command, and wait until it has. */
static void its_command(u64 first, u64 second, u64 third)
{
        u64 writer = *at64(its + GITS_CWRITER);
        volatile u64 *command = its_memory.commands + writer / 8;

        command[0] = first;
        command[1] = second;
        command[2] = third;
        command[3] = 0;
        barrier();
        writer = (writer + COMMAND_LEN) % sizeof(its_memory.commands);
        *at64(its + GITS_CWRITER) = writer;
        while (*at64(its + GITS_CREADR) != writer)
                relax();
}

static void its_sync(u32 cpu)
{
        its_command(COMMAND_SYNC, 0, (u64)cpu << 16);
}

static void setup_its(void)
{
        its = first_redistributor() - ITS_LEN;
        for (u32 index = 0; index < BASERS; index++) {
                u64 where = its + GITS_BASER + 8 * index, type = BASER_TYPE(*at64(where));
                u8 *table = type == BASER_DEVICES ? device_table : collection_table;

                if (type == BASER_DEVICES || type == BASER_COLLECTIONS)
                        *at64(where) = TABLE_VALID | WRITE_BACK | BASER_PAGE_64K | (u64)table;
        }
        *at64(its + GITS_CBASER) = TABLE_VALID | WRITE_BACK | (u64)its_memory.commands;
        *at64(its + GITS_CWRITER) = 0;
        *at32(its + GITS_CTLR) = 1;
}

/* Let LPIs through to this CPU. */
static void enable_lpis(void)
{
        u64 frame = redistributor(this_cpu());

        *at64(frame + GICR_PROPBASER) = (u64)its_memory.configuration | LPIS_WRITE_BACK | (LPI_ID_BITS - 1);
        *at64(frame + GICR_PENDBASER) = (u64)pending_tables[this_cpu()] | LPIS_WRITE_BACK;
        *at32(frame + GICR_CTLR) |= CTLR_ENABLE_LPIS;
}

static inline void map_device(u32 device)
{
        its_command(COMMAND_MAPD | (u64)device << 32, EVENT_BITS - 1, TABLE_VALID | (u64)its_memory.events);
}

/* Have interrupts of a collection go to the CPU of the same number. */
static void map_collection(u32 cpu)
{
        its_command(COMMAND_MAPC, 0, TABLE_VALID | (u64)cpu << 16 | cpu);
        its_sync(cpu);
}

static void enable_lpi(u32 device, u32 event, u32 lpi, u32 enable)
{
        its_memory.configuration[lpi - LPI_BASE] = LPI_PRIORITY | (enable ? LPI_ENABLE : 0);
        barrier();
        its_command(COMMAND_INV | (u64)device << 32, event, 0);
}

static void map_event(u32 device, u32 event, u32 lpi, u32 cpu)
{
        its_command(COMMAND_MAPTI | (u64)device << 32, event | (u64)lpi << 32, cpu);
        enable_lpi(device, event, lpi, 1);
        its_sync(cpu);
}

static inline void raise_event(u32 device, u32 event)
{
        its_command(COMMAND_INT | (u64)device << 32, event, 0);
}

#endif
