/*
 * Work its devices for ever, over PCI or over memory-mapped registers, whichever there is, and print a line a round:
 * `io <n> sum <checksum> resets <r> generations <g>`. tests/guests/device_lines.py computes the same checksums.
 *
 * A round writes a pattern to a sector of the disk and reads it back, reads the sector of the round before, takes random
 * bytes, gives a page to the balloon and finds it empty, and sends a frame. *resets* counts what the vsock device says of
 * lost connections, *generations* the interrupts of the VM generation id: both rise with each restore. What is not as it
 * should be ends it with a line that says so. Devices that are not there are left alone, but for the disk and the rng.
 *
 * A line goes out, and a while goes by behind it, in a state that wants to survive a snapshot: an interrupt of the rng is
 * held back, at its masked MSI-X entry or at its pin, the line high; over PCI the vsock device's function mask is set, and
 * BAR 0 of the balloon is about to move: written, decoding still off. The next round lets all of that happen and looks.
 *
 * Documents: VIRTIO 1.3, sections 5.1 to 5.5 and 5.10 (devices).
 */
#include "rt.h"
#include "virtio.h"

#define SECTOR_WORDS 128
#define BLOCK_IN 0
#define BLOCK_OUT 1
#define BLOCK_FLUSH 4
#define BLOCK_F_FLUSH (1 << 9)
#define PAGE_LEN 4096
#define RANDOM_WORDS 8
#define FRAME_LEN 72                    /* a header of 12 bytes and the shortest frame, without its check sequence */
#define PACKET_LEN 1528
#define OFFERED 2
#define MSIX_ON 0x80000000u
#define MSIX_FUNCTION_MASK 0x40000000u
#define QUIET_LOOPS 20000
#define SIBLING 0x10000000              /* from one of the balloon's two places to the other, by exclusive or */

static struct {
        u32 type, reserved;
        u64 sector;
} block_header;
static u32 written[SECTOR_WORDS], readable[SECTOR_WORDS];
static volatile u8 block_status;
static u32 randoms[RANDOM_WORDS], last_randoms[RANDOM_WORDS];
static u8 frame[FRAME_LEN], packets[OFFERED][PACKET_LEN], vsock_packets[OFFERED][PACKET_LEN];
static volatile u32 events[OFFERED];
static u8 page[PAGE_LEN] __attribute__((aligned(PAGE_LEN)));
static u32 page_number, resets, sum;
static struct device *disk, *rng, *net, *balloon, *vsock;

static void fail(const char *what)
{
        put_text("failed: ");
        put_text(what);
        put_char('\n');
        halt();
}

/* The disk. */

static void block(u32 type, u32 sector, void *buffer)
{
        struct part parts[] = {
                { &block_header, sizeof(block_header), 0 },
                { buffer, sizeof(written), type == BLOCK_IN },
                { &block_status, 1, 1 },
        };

        block_header.type = type;
        block_header.sector = sector;
        block_status = 0xff;
        if (!buffer)
                parts[1] = parts[2];
        if (request(disk, 0, parts, buffer ? 3 : 2) != (type == BLOCK_IN ? sizeof(readable) + 1 : 1))
                fail("length of a block request");
        if (block_status)
                fail("status of a block request");
}

static u32 pattern(u32 round, u32 index)
{
        return ((round * SECTOR_WORDS + index) ^ 0x5bd1e995) * 1664525u + 1013904223u;
}

static void read_and_compare(u32 round, u32 sectors)
{
        for (u32 index = 0; index < SECTOR_WORDS; index++)
                readable[index] = 0;
        block(BLOCK_IN, round % sectors, readable);
        for (u32 index = 0; index < SECTOR_WORDS; index++) {
                if (readable[index] != pattern(round, index))
                        fail("contents of a sector");
                sum = (sum << 5 | sum >> 27) + readable[index];
        }
}

static void work_disk(u32 round)
{
        u32 sectors = *at32(disk->base + disk->config);

        for (u32 index = 0; index < SECTOR_WORDS; index++)
                written[index] = pattern(round, index);
        block(BLOCK_OUT, round % sectors, written);
        block(BLOCK_FLUSH, 0, 0);
        read_and_compare(round, sectors);
        if (round > 1)
                read_and_compare(round - 1, sectors);
}

/* Random bytes. */

static const struct part random_part = { randoms, sizeof(randoms), 1 };

static void check_random(u32 length)
{
        u32 same = 0;

        if (length != sizeof(randoms))
                fail("length of random bytes");
        for (u32 index = 0; index < RANDOM_WORDS; index++) {
                same += randoms[index] == last_randoms[index];
                last_randoms[index] = randoms[index];
        }
        if (same == RANDOM_WORDS)
                fail("random bytes repeat");
}

static void hold_interrupt_back(void)
{
        u32 before = rng->interrupts;

        mask(rng, 0, 1);
        offer(rng, 0, &random_part, 1);
        kick(rng, 0);
        check_random(poll(rng, 0));
        while (!pending(rng, 0))        /* the answer is there before its interrupt */
                relax();
        if (rng->interrupts != before)
                fail("a masked interrupt came");
}

static void let_interrupt_through(void)
{
        u32 before = rng->interrupts;

        if (!pending(rng, 0))
                fail("a masked interrupt is lost");
        mask(rng, 0, 0);
        wait_interrupt(rng, before);
        if (pending(rng, 0))
                fail("an interrupt still waits");
}

/* The balloon. */

static void work_balloon(void)
{
        const struct part part = { &page_number, sizeof(page_number), 0 };

        for (u32 index = 0; index < PAGE_LEN; index++)
                page[index] = index | 1;
        page_number = address_of(page) / PAGE_LEN;
        for (u32 queue = 0; queue < 2; queue++)         /* inflate, deflate */
                request(balloon, queue, &part, 1);
        for (u32 index = 0; index < PAGE_LEN; index++)
                if (((volatile u8 *)page)[index])
                        fail("a page given to the balloon kept its contents");
}

static void begin_move(void)
{
        set_decoding(balloon, 0);
        if (status(balloon) != 0xff)
                fail("the balloon answers with decoding off");
        balloon->base ^= SIBLING;
        set_bar(balloon, balloon->base);
        if (status(balloon) != 0xff)
                fail("the balloon answers where it is not yet");
}

static void end_move(void)
{
        set_decoding(balloon, 1);
        if (status(balloon) != ALIVE)
                fail("the balloon is not alive where it moved");
        balloon->base ^= SIBLING;
        if (status(balloon) != 0xff)
                fail("the balloon still answers where it was");
        balloon->base ^= SIBLING;
}

/* The network, its interface down: a frame goes nowhere, and none comes. */

static void work_net(void)
{
        const struct part part = { frame, sizeof(frame), 0 };

        request(net, 1, &part, 1);
}

/* Vsock: room for packets, which none sends; events are answered with room for the next. */

static void offer_event(u32 number)
{
        const struct part part = { &events[number], sizeof(events[number]), 1 };

        events[number] = ~0u;
        offer(vsock, 2, &part, 1);
        kick(vsock, 2);
}

static void take_events(void)
{
        while (answered(vsock, 2)) {
                if (take(vsock, 2) != sizeof(events[0]) || events[resets % OFFERED])
                        fail("a vsock event that is no transport reset");
                offer_event(resets++ % OFFERED);
        }
}

static void offer_packets(struct device *device, u8 (*buffers)[PACKET_LEN])
{
        for (u32 number = 0; number < OFFERED; number++) {
                const struct part part = { buffers[number], PACKET_LEN, 1 };

                offer(device, 0, &part, 1);
        }
        kick(device, 0);
}

static void set_up(void)
{
        disk = find(TYPE_BLOCK);
        rng = find(TYPE_RNG);
        net = find(TYPE_NET);
        balloon = find(TYPE_BALLOON);
        vsock = find(TYPE_VSOCK);
        if (!disk || !rng)
                fail("no disk or no rng");
        setup_interrupts();
        bring_up(disk, BLOCK_F_FLUSH | F_INDIRECT_DESC);
        bring_up(rng, F_EVENT_IDX);
        if (balloon)
                bring_up(balloon, 0);
        if (net) {
                bring_up(net, 0);
                offer_packets(net, packets);
        }
        if (vsock) {
                bring_up(vsock, F_EVENT_IDX);
                if (on_pci)
                        config_write(vsock->slot, vsock->msix, MSIX_ON | MSIX_FUNCTION_MASK);
                offer_packets(vsock, vsock_packets);
                for (u32 number = 0; number < OFFERED; number++)
                        offer_event(number);
        }
        request(rng, 0, &random_part, 1);       /* which also shows its pin */
        for (u32 index = 0; index < RANDOM_WORDS; index++)
                last_randoms[index] = randoms[index];
}

static void tell(u32 round)
{
        put_text("io ");
        put_decimal(round);
        put_text(" sum ");
        put_hex(sum);
        put_text(" resets ");
        put_decimal(resets);
        put_text(" generations ");
        put_decimal(generations);
        put_char('\n');
}

void guest_main(void)
{
        find_devices();
        set_up();
        for (u32 round = 1;; round++) {
                work_disk(round);
                check_random(request(rng, 0, &random_part, 1));
                if (balloon)
                        work_balloon();
                if (net)
                        work_net();
                if (vsock)
                        take_events();
                hold_interrupt_back();
                if (balloon && on_pci)
                        begin_move();
                tell(round);
                for (volatile u32 loop = 0; loop < QUIET_LOOPS; loop++)
                        ;
                if (balloon && on_pci)
                        end_move();
                let_interrupt_through();
        }
}
