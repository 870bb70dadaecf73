/*
 * What of virtio.h is x86-64's: configuration space by ports, MSIs to the local APIC, lines to the IOAPIC. virtio.h
 * includes it.
 *
 * Documents: Intel 82093AA (IOAPIC); Intel SDM volume 3, "Local APIC"; PCI Local Bus Specification 3.0, 3.2.2.3.2.
 */
#ifndef SNAPKIT_GUESTS_VIRTIO_X86_64_H
#define SNAPKIT_GUESTS_VIRTIO_X86_64_H

#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc
#define BAR_WINDOW 0xc0000000u
#define MMIO_SLOTS_END 0xeec00000u      /* the first slot ends here, the others lie below it */

#define IOAPIC_SELECT ((volatile u32 *)0xfec00000u)
#define IOAPIC_WINDOW ((volatile u32 *)0xfec00010u)
#define IOAPIC_LEVEL (1 << 15)
#define IOAPIC_MASKED (1 << 16)
#define LAPIC_EOI 0xb0
#define LAPIC_SVR 0xf0
#define LAPIC_ENABLE (1 << 8)
#define SPURIOUS_VECTOR 0xff
#define MSI_ADDRESS 0xfee00000u         /* fixed delivery to the APIC with id 0 */
#define GENERATION_PIN 5                /* of the VM generation id, an edge; devices have those behind it */
#define PINS 24
#define FIRST_VECTOR 0x40               /* MMIO: and the pin. PCI: and 8 times the device's number and the MSI-X entry */
#define VECTORS 0x40
#define GENERATION_VECTOR 0x38

static inline volatile u8 *at8(u32 address) { return (volatile u8 *)address; }
static inline volatile u16 *at16(u32 address) { return (volatile u16 *)address; }
static inline volatile u32 *at32(u32 address) { return (volatile u32 *)address; }

/* Stores reach devices in the order in which the compiler leaves them. */
static inline void ordered(void)
{
        __asm__ volatile("" : : : "memory");
}

static u32 config_read(u32 slot, u32 offset)
{
        u32 value;

        __asm__ volatile("outl %0, %w1" : : "a"(1u << 31 | slot << 11 | offset), "d"(PCI_ADDRESS));
        __asm__ volatile("inl %w1, %0" : "=a"(value) : "d"(PCI_DATA));
        return value;
}

static void config_write(u32 slot, u32 offset, u32 value)
{
        __asm__ volatile("outl %0, %w1" : : "a"(1u << 31 | slot << 11 | offset), "d"(PCI_ADDRESS));
        __asm__ volatile("outl %0, %w1" : : "a"(value), "d"(PCI_DATA));
}

/* One stub for each vector: its number, then the common part, which hands it to the body. */
__asm__(".text; .balign 16; stubs:"
        ".set vector, 0x38; .rept 0x48; .balign 16; .byte 0x68; .long vector; jmp common; .set vector, vector + 1; .endr;"
        "common: pushl %eax; pushl %ecx; pushl %edx; cld; pushl 12(%esp); call interrupted; addl $4, %esp;"
        "popl %edx; popl %ecx; popl %eax; addl $4, %esp;" RETURN_FROM_INTERRUPT);
extern char stubs[];
#define STUB_LEN 16

static __attribute__((used)) void interrupted(u32 vector)
{
        if (vector == GENERATION_VECTOR)
                generations++;
        else if (on_pci)
                take_message((vector - FIRST_VECTOR) / ENTRIES);
        else
                take_line(vector - FIRST_VECTOR);
        *lapic(LAPIC_EOI) = 0;
}

static void set_pin(u32 pin, u32 low)
{
        *IOAPIC_SELECT = 0x10 + 2 * pin + 1;
        *IOAPIC_WINDOW = 0;             /* to the APIC with id 0 */
        *IOAPIC_SELECT = 0x10 + 2 * pin;
        *IOAPIC_WINDOW = low;
}

static void mask_line(u32 pin, u32 masked)
{
        set_pin(pin, IOAPIC_LEVEL | (FIRST_VECTOR + pin) | (masked ? IOAPIC_MASKED : 0));
}

static void setup_interrupts(void)
{
        load_idt();
        setup_pic(0);
        for (u32 vector = GENERATION_VECTOR; vector < FIRST_VECTOR + VECTORS; vector++)
                set_gate(vector, (void (*)(void))(stubs + (vector - GENERATION_VECTOR) * STUB_LEN));
        set_gate(SPURIOUS_VECTOR, ignore_interrupt);
        *lapic(LAPIC_SVR) = LAPIC_ENABLE | SPURIOUS_VECTOR;
        set_pin(GENERATION_PIN, GENERATION_VECTOR);
        for (u32 pin = GENERATION_PIN + 1; !on_pci && pin < PINS; pin++)
                mask_line(pin, 0);
        enable_interrupts();
}

static u32 message_address(void)
{
        return MSI_ADDRESS;
}

static u32 message_data(const struct device *device, u32 entry)
{
        return FIRST_VECTOR + ENTRIES * (device - devices) + entry;
}

#endif
