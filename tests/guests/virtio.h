/*
 * A small virtio driver: finds its devices over PCI or over memory-mapped registers, brings them to DRIVER_OK, and makes
 * requests on their queues. One translation unit includes it, behind rt.h.
 *
 * Documents: VIRTIO 1.3, sections 2.7 (split virtqueues), 4.1 (PCI), 4.2 (MMIO); PCI Local Bus Specification 3.0, chapter 6
 * (configuration space, MSI-X).
 *
 * Over PCI, BAR 0 of a new device lies above 4 GiB, where the guest does not reach: it is moved, with decoding off, into
 * the 32-bit window. Each queue gets an MSI-X entry of its own. Over MMIO each device has a level-triggered line; which
 * pin of the interrupt controller that is shows when it first interrupts, so no other may interrupt at that time.
 *
 * What differs between architectures is in a header of each: where things are, configuration space, interrupts.
 *
 * Surprise: where KVM emulates every instruction, it delivers a level-triggered interrupt a second time although the line
 * went low before the end of interrupt. A handler has to bear that anyway.
 */
#ifndef SNAPKIT_GUESTS_VIRTIO_H
#define SNAPKIT_GUESTS_VIRTIO_H

#define PCI_COMMAND 0x04
#define PCI_BAR0 0x10
#define PCI_CAPABILITIES 0x34
#define PCI_DECODE_AND_MASTER 0x06
#define PCI_CAP_VENDOR 0x09
#define PCI_CAP_MSIX 0x11
#define PCI_SLOTS 32
#define VIRTIO_VENDOR 0x1af4
#define VIRTIO_DEVICE_BASE 0x1040
#define BAR_LEN 0x80000

#define COMMON_FEATURE_SELECT 0x00
#define COMMON_FEATURE 0x04
#define COMMON_ACCEPT_SELECT 0x08
#define COMMON_ACCEPT 0x0c
#define COMMON_CONFIG_VECTOR 0x10
#define COMMON_STATUS 0x14
#define COMMON_QUEUE_SELECT 0x16
#define COMMON_QUEUE_SIZE 0x18
#define COMMON_QUEUE_VECTOR 0x1a
#define COMMON_QUEUE_ENABLE 0x1c
#define COMMON_QUEUE_NOTIFY_OFF 0x1e
#define COMMON_QUEUE_RINGS 0x20

#define MMIO_SLOT_LEN 0x1000
#define MMIO_MAGIC 0x74726976           /* "virt" */
#define MMIO_DEVICE_ID 0x008
#define MMIO_FEATURE 0x010
#define MMIO_FEATURE_SELECT 0x014
#define MMIO_ACCEPT 0x020
#define MMIO_ACCEPT_SELECT 0x024
#define MMIO_QUEUE_SELECT 0x030
#define MMIO_QUEUE_SIZE_MAX 0x034
#define MMIO_QUEUE_SIZE 0x038
#define MMIO_QUEUE_READY 0x044
#define MMIO_QUEUE_NOTIFY 0x050
#define MMIO_INTERRUPT_STATUS 0x060
#define MMIO_INTERRUPT_ACK 0x064
#define MMIO_STATUS 0x070
#define MMIO_QUEUE_RINGS 0x080          /* three addresses, 16 bytes apart */

#define ACKNOWLEDGE 1
#define DRIVER 2
#define DRIVER_OK 4
#define FEATURES_OK 8
#define ALIVE (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
#define F_INDIRECT_DESC (1 << 28)
#define F_EVENT_IDX (1 << 29)
#define F_VERSION_1 (1 << 0)            /* of the high word */

#define TYPE_NET 1
#define TYPE_BLOCK 2
#define TYPE_RNG 4
#define TYPE_BALLOON 5
#define TYPE_VSOCK 19

#define DEVICES 8
#define QUEUES 5
#define ENTRIES 8                       /* of MSI-X, at most */
#define QUEUE_LEN 8
#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4

struct desc {
        u64 address;
        u32 length;
        u16 flags, next;
};

struct ring {
        struct desc desc[QUEUE_LEN], table[QUEUE_LEN];
        struct {
                u16 flags, index, ring[QUEUE_LEN], used_event;
        } avail;
        struct {
                u16 flags, index;
                struct {
                        u32 id, length;
                } ring[QUEUE_LEN];
                u16 avail_event;
        } used;
        u32 notify;                     /* its doorbell: an offset into BAR 0 */
        u16 seen, next;
} __attribute__((aligned(256)));

struct device {
        u32 type, base, queues, features;
        u32 slot, moves;
        u32 common, notify, notify_multiplier, config, msix, table, pba;
        u32 pin, masked;
        volatile u32 interrupts;
        volatile struct ring ring[QUEUES];
};

static struct device devices[DEVICES];
static u32 device_count, on_pci;
static volatile u32 generations;

static void fail(const char *what) __attribute__((noreturn));
static void take_message(u32 index);
static void take_line(u32 pin);

/* Guests lie below 4 GiB. */
static inline u32 address_of(const volatile void *at) { return (unsigned long)at; }

#ifdef __aarch64__
#include "virtio_aarch64.h"
#else
#include "virtio_x86_64.h"
#endif

/* Registers. */

static u32 status(const struct device *device)
{
        return on_pci ? *at8(device->base + device->common + COMMON_STATUS) : *at32(device->base + MMIO_STATUS);
}

static void set_status(const struct device *device, u32 value)
{
        if (on_pci)
                *at8(device->base + device->common + COMMON_STATUS) = value;
        else
                *at32(device->base + MMIO_STATUS) = value;
}

static void accept(const struct device *device, u32 word, u32 wanted)
{
        u32 select = on_pci ? device->common + COMMON_FEATURE_SELECT : MMIO_FEATURE_SELECT;
        u32 offered = on_pci ? device->common + COMMON_FEATURE : MMIO_FEATURE;
        u32 accept_select = on_pci ? device->common + COMMON_ACCEPT_SELECT : MMIO_ACCEPT_SELECT;
        u32 accepted = on_pci ? device->common + COMMON_ACCEPT : MMIO_ACCEPT;

        *at32(device->base + select) = word;
        if ((*at32(device->base + offered) & wanted) != wanted)
                fail("feature not offered");
        *at32(device->base + accept_select) = word;
        *at32(device->base + accepted) = wanted;
}

/* Interrupts, as the machine's handler tells of them. */

static void take_message(u32 index)
{
        devices[index].interrupts++;
}

static void take_line(u32 pin)
{
        for (u32 index = 0; index < device_count; index++) {
                u32 causes = *at32(devices[index].base + MMIO_INTERRUPT_STATUS);

                if (!causes || devices[index].masked)
                        continue;
                *at32(devices[index].base + MMIO_INTERRUPT_ACK) = causes;
                if (!devices[index].pin)
                        devices[index].pin = pin;
                devices[index].interrupts++;
        }
}

/* Hold back the interrupts of a device's queue: the entry is masked, or the pin, all queues' then. */
static void mask(struct device *device, u32 queue, u32 masked)
{
        device->masked = masked;
        if (on_pci)
                *at32(device->base + device->table + 16 * (queue + 1) + 12) = masked;
        else
                mask_line(device->pin, masked);
}

/* Whether an interrupt of the queue waits in the device. */
static u32 pending(const struct device *device, u32 queue)
{
        return on_pci ? *at32(device->base + device->pba) >> (queue + 1) & 1 : *at32(device->base + MMIO_INTERRUPT_STATUS);
}

/* Finding devices. */

static void set_decoding(const struct device *device, u32 on)
{
        config_write(device->slot, PCI_COMMAND, on ? PCI_DECODE_AND_MASTER : 0);
}

/* Write where BAR 0 shall be, which takes effect when decoding is turned on. */
static void set_bar(const struct device *device, u32 address)
{
        config_write(device->slot, PCI_BAR0, address);
        config_write(device->slot, PCI_BAR0 + 4, 0);
}

static void read_capabilities(struct device *device)
{
        u32 slot = device->slot, offset = config_read(slot, PCI_CAPABILITIES) & 0xfc;

        while (offset) {
                u32 head = config_read(slot, offset);

                if ((head & 0xff) == PCI_CAP_VENDOR) {
                        u32 where = config_read(slot, offset + 8);

                        switch (head >> 24) {
                        case 1: device->common = where; break;
                        case 2:
                                device->notify = where;
                                device->notify_multiplier = config_read(slot, offset + 16);
                                break;
                        case 4: device->config = where; break;
                        }
                } else if ((head & 0xff) == PCI_CAP_MSIX) {
                        device->msix = offset;
                        device->table = config_read(slot, offset + 4) & ~7u;
                        device->pba = config_read(slot, offset + 8) & ~7u;
                }
                offset = head >> 8 & 0xfc;
        }
}

static void find_devices(void)
{
        on_pci = (config_read(0, 0) & 0xffff) != 0xffff;
        for (u32 slot = on_pci; slot < PCI_SLOTS && device_count < DEVICES; slot++) {
                struct device *device = &devices[device_count];

                if (on_pci) {
                        u32 identity = config_read(slot, 0);

                        if ((identity & 0xffff) != VIRTIO_VENDOR)
                                continue;
                        device->slot = slot;
                        device->type = (identity >> 16) - VIRTIO_DEVICE_BASE;
                        device->base = BAR_WINDOW + slot * BAR_LEN;
                        read_capabilities(device);
                        set_decoding(device, 0);
                        set_bar(device, device->base);
                        set_decoding(device, 1);
                } else {
                        u32 base = MMIO_SLOTS_END - (slot + 1) * MMIO_SLOT_LEN;

                        if (*at32(base) != MMIO_MAGIC)
                                break;
                        device->base = base;
                        device->type = *at32(base + MMIO_DEVICE_ID);
                        device->config = 0x100;
                }
                device_count++;
        }
}

static struct device *find(u32 type)
{
        for (u32 index = 0; index < device_count; index++)
                if (devices[index].type == type)
                        return &devices[index];
        return 0;
}

/* Bringing them up. */

static u32 setup_queue(struct device *device, u32 queue)
{
        volatile struct ring *ring = &device->ring[queue];
        const u32 areas[] = { address_of(ring->desc), address_of(&ring->avail), address_of(&ring->used) };
        u32 common = device->base + device->common;

        if (on_pci) {
                *at16(common + COMMON_QUEUE_SELECT) = queue;
                if (!*at16(common + COMMON_QUEUE_SIZE))
                        return 0;
                *at16(common + COMMON_QUEUE_SIZE) = QUEUE_LEN;
                *at16(common + COMMON_QUEUE_VECTOR) = queue + 1;
                if (*at16(common + COMMON_QUEUE_VECTOR) != queue + 1)
                        fail("no vector");
                ring->notify = device->notify + *at16(common + COMMON_QUEUE_NOTIFY_OFF) * device->notify_multiplier;
        } else {
                *at32(device->base + MMIO_QUEUE_SELECT) = queue;
                if (!*at32(device->base + MMIO_QUEUE_SIZE_MAX))
                        return 0;
                *at32(device->base + MMIO_QUEUE_SIZE) = QUEUE_LEN;
                ring->notify = MMIO_QUEUE_NOTIFY;
        }
        for (u32 index = 0; index < 3; index++) {
                u32 where = on_pci ? common + COMMON_QUEUE_RINGS + 8 * index
                                   : device->base + MMIO_QUEUE_RINGS + 16 * index;

                *at32(where) = areas[index];
                *at32(where + 4) = 0;
        }
        if (on_pci)
                *at16(common + COMMON_QUEUE_ENABLE) = 1;
        else
                *at32(device->base + MMIO_QUEUE_READY) = 1;
        return 1;
}

static void setup_msix(struct device *device)
{
        u32 entries = (config_read(device->slot, device->msix) >> 16 & 0x7ff) + 1;

        for (u32 entry = 0; entry < entries && entry < ENTRIES; entry++) {
                u32 at = device->base + device->table + 16 * entry;

                *at32(at) = message_address();
                *at32(at + 4) = 0;
                *at32(at + 8) = message_data(device, entry);
                *at32(at + 12) = 0;
        }
        config_write(device->slot, device->msix, 1u << 31);     /* MSI-X on, no function mask */
}

static void bring_up(struct device *device, u32 features)
{
        set_status(device, 0);
        while (status(device))
                ;
        set_status(device, ACKNOWLEDGE);
        set_status(device, ACKNOWLEDGE | DRIVER);
        device->features = features;
        accept(device, 0, features);
        accept(device, 1, F_VERSION_1);
        set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if (!(status(device) & FEATURES_OK))
                fail("features refused");
        if (on_pci) {
                setup_msix(device);
                *at16(device->base + device->common + COMMON_CONFIG_VECTOR) = 0;
        }
        while (device->queues < QUEUES && setup_queue(device, device->queues))
                device->queues++;
        set_status(device, ALIVE);
        if (status(device) != ALIVE)
                fail("device not alive");
}

/* Requests. */

struct part {
        const volatile void *at;
        u32 length, writable;
};

/* Offer a chain; the buffers of a queue are used in turn, so at most as many are out as the ring has entries. */
static void offer(struct device *device, u32 queue, const struct part *parts, u32 count)
{
        volatile struct ring *ring = &device->ring[queue];
        u32 indirect = device->features & F_INDIRECT_DESC;
        volatile struct desc *table = indirect ? ring->table : ring->desc;
        u16 head = indirect ? 0 : ring->next;

        for (u32 index = 0; index < count; index++) {
                u16 number = indirect ? index : (head + index) % QUEUE_LEN;
                u16 flags = (parts[index].writable ? DESC_WRITE : 0) | (index + 1 < count ? DESC_NEXT : 0);

                table[number].address = address_of(parts[index].at);
                table[number].length = parts[index].length;
                table[number].flags = flags;
                table[number].next = (number + 1) % QUEUE_LEN;
        }
        if (indirect) {
                ring->desc[0].address = address_of(table);
                ring->desc[0].length = count * sizeof(struct desc);
                ring->desc[0].flags = DESC_INDIRECT;
        } else {
                ring->next = (head + count) % QUEUE_LEN;
        }
        ring->avail.ring[ring->avail.index % QUEUE_LEN] = head;
        ring->avail.used_event = ring->seen;
        ordered();
        ring->avail.index++;
}

static void kick(const struct device *device, u32 queue)
{
        u32 doorbell = device->base + device->ring[queue].notify;

        ordered();
        if (on_pci)
                *at16(doorbell) = queue;
        else
                *at32(doorbell) = queue;
}

static u32 answered(const struct device *device, u32 queue)
{
        return device->ring[queue].used.index != device->ring[queue].seen;
}

/* Take one answer, which is there; returns how much was written. */
static u32 take(struct device *device, u32 queue)
{
        volatile struct ring *ring = &device->ring[queue];

        ordered();
        return ring->used.ring[ring->seen++ % QUEUE_LEN].length;
}

static u32 poll(struct device *device, u32 queue)
{
        while (!answered(device, queue))
                relax();
        return take(device, queue);
}

/* Halt until the count of the device's interrupts is another than *before*. */
static void wait_interrupt(const struct device *device, u32 before)
{
        for (;;) {
                disable_interrupts();
                if (device->interrupts != before)
                        break;
                wait_for_interrupt();
        }
        enable_interrupts();
}

/* Make a request and halt until its interrupt. */
static u32 request(struct device *device, u32 queue, const struct part *parts, u32 count)
{
        u32 before = device->interrupts;

        offer(device, queue, parts, count);
        kick(device, queue);
        for (;;) {
                u32 now = device->interrupts;

                if (answered(device, queue) && now != before)
                        break;
                wait_interrupt(device, now);
        }
        return take(device, queue);
}

#endif
