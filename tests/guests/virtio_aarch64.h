/*
 * What of virtio.h is aarch64's: configuration space in memory, MSIs through the interrupt translation service to LPIs,
 * lines to the distributor. virtio.h includes it.
 *
 * Documents: Arm Generic Interrupt Controller architecture version 3 (IHI 0069); PCI Express Base Specification, "Enhanced
 * Configuration Access Mechanism".
 *
 * An event of the translation service is an entry of MSI-X; LPIs are numbered by device and entry.
 */
#ifndef SNAPKIT_GUESTS_VIRTIO_AARCH64_H
#define SNAPKIT_GUESTS_VIRTIO_AARCH64_H

#include "aarch64/its.h"

#define ECAM 0x70000000u
#define BAR_WINDOW 0x40000000u
#define MMIO_SLOTS_END 0x70000000u      /* the first slot ends here, the others lie below it */
#define TRANSLATER 0x10040              /* of the translation service: where devices write their event's number */
#define GICD_ICENABLER (GICD + 0x180)
#define GICD_ICFGR (GICD + 0xc00)
#define SPI_BASE 32
#define GENERATION_PIN 2                /* of the VM generation id, an edge; devices have those behind it */
#define PINS 32

static u64 translations[DEVICES][1 << EVENT_BITS] __attribute__((aligned(256)));

static inline void ordered(void)
{
        barrier();
}

static u32 config_read(u32 slot, u32 offset)
{
        return *at32(ECAM + (slot << 15) + offset);
}

static void config_write(u32 slot, u32 offset, u32 value)
{
        *at32(ECAM + (slot << 15) + offset) = value;
}

static void interrupted(u32 intid)
{
        if (intid == SPI_BASE + GENERATION_PIN)
                generations++;
        else if (intid >= LPI_BASE)
                take_message((intid - LPI_BASE) / ENTRIES);
        else
                take_line(intid - SPI_BASE);
}

static void mask_line(u32 pin, u32 masked)
{
        u32 intid = SPI_BASE + pin;

        *at32((masked ? GICD_ICENABLER : GICD_ISENABLER) + 4 * (intid / 32)) = 1u << intid % 32;
}

/* Edges or levels: which of them pins are from reset on, the architecture does not say. */
static void set_edge(u32 pin, u32 edge)
{
        u32 intid = SPI_BASE + pin, bit = 2u << 2 * (intid % 16);
        volatile u32 *word = at32(GICD_ICFGR + 4 * (intid / 16));

        *word = edge ? *word | bit : *word & ~bit;
}

/* Each event of a device to an LPI of its own. */
static void map_messages(u32 index)
{
        u64 source = devices[index].slot << 3;          /* its bus, device and function */

        its_command(COMMAND_MAPD | source << 32, EVENT_BITS - 1, TABLE_VALID | (u64)translations[index]);
        for (u32 entry = 0; entry < ENTRIES; entry++)
                map_event(source, entry, LPI_BASE + ENTRIES * index + entry, 0);
}

static void setup_interrupts(void)
{
        interrupt_handler = interrupted;
        setup_distributor();
        setup_cpu_interface(0);
        set_edge(GENERATION_PIN, 1);
        enable_shared(SPI_BASE + GENERATION_PIN);
        if (on_pci) {
                enable_lpis();
                setup_its();
                map_collection(0);
                for (u32 index = 0; index < device_count; index++)
                        map_messages(index);
        } else {
                for (u32 pin = GENERATION_PIN + 1; pin < PINS; pin++) {
                        set_edge(pin, 0);
                        enable_shared(SPI_BASE + pin);
                }
        }
        enable_interrupts();
}

static u32 message_address(void)
{
        return its + TRANSLATER;
}

static u32 message_data(const struct device *device, u32 entry)
{
        (void)device;                   /* the service knows whose message it is */
        return entry;
}

#endif
