/*
 * Runtime of the tiny guests: serial text, interrupts, timer, power, further CPUs. One translation unit includes it, so all
 * but what start.S calls is static.
 *
 * Documents: Arm PrimeCell UART PL011 (DDI 0183), Arm Generic Interrupt Controller architecture version 3 (IHI 0069), Arm
 * Architecture Reference Manual (DDI 0487), chapter "The Generic Timer", Power State Coordination Interface (DEN 0022).
 */
#ifndef SNAPKIT_GUESTS_RT_H
#define SNAPKIT_GUESTS_RT_H

#include "text.h"

/* The machine's addresses. */
#define PL011 0x09000000u
#define GICD 0x3fff0000u                /* redistributors lie below it, the last one's highest; the ITS lies below them */
#define GICR_LEN 0x20000u
#define CPUS_MAX 8

/* PL011 */
#define UART_DR (PL011 + 0x00)
#define UART_FR (PL011 + 0x18)
#define UART_LCRH (PL011 + 0x2c)
#define UART_CR (PL011 + 0x30)
#define UART_IMSC (PL011 + 0x38)
#define FR_RXFE (1 << 4)
#define FR_TXFF (1 << 5)
#define LCRH_8_BITS_FIFOS (3 << 5 | 1 << 4)
#define CR_ON (1 << 0 | 1 << 8 | 1 << 9) /* UARTEN, TXE, RXE */
#define INTERRUPTS_RECEIVED (1 << 4 | 1 << 6) /* RX: as many as chosen; RT: fewer, for a while */
#define UART_INTID 32                   /* SPI 0 */

/* GICv3 */
#define GICD_CTLR (GICD + 0x0)
#define GICD_IGROUPR (GICD + 0x80)
#define GICD_ISENABLER (GICD + 0x100)
#define GICD_CTLR_ARE (1 << 4)
#define GICD_CTLR_GROUP1 (1 << 1)
#define GICR_CTLR 0x0
#define GICR_TYPER 0x8
#define GICR_WAKER 0x14
#define GICR_IGROUPR0 0x10080
#define GICR_ISENABLER0 0x10100
#define WAKER_PROCESSOR_SLEEP (1 << 1)
#define WAKER_CHILDREN_ASLEEP (1 << 2)
#define TYPER_NUMBER(typer) ((typer) >> 8 & 0xffff)
#define NO_INTID 1023
#define SGIS 16
#define TIMER_INTID 27                  /* of the virtual timer, which is this exception level's own */

/* PSCI, by hvc */
#define CPU_ON 0xc4000003u
#define SYSTEM_OFF 0x84000008u
#define SYSTEM_RESET 0x84000009u

void guest_main(void);
void secondary_main(u64 cpu);
void take_interrupt(void);
void unexpected(void);
extern const void *const fdt;
extern const u8 start_secondary[];

static inline volatile u8 *at8(u64 address) { return (volatile u8 *)address; }
static inline volatile u16 *at16(u64 address) { return (volatile u16 *)address; }
static inline volatile u32 *at32(u64 address) { return (volatile u32 *)address; }
static inline volatile u64 *at64(u64 address) { return (volatile u64 *)address; }

#define read_register(name)                                                                            \
        ({ u64 value_; __asm__ volatile("mrs %0, " #name : "=r"(value_)); value_; })
#define write_register(name, value) __asm__ volatile("msr " #name ", %0; isb" : : "r"((u64)(value)) : "memory")

static inline void enable_interrupts(void)
{
        __asm__ volatile("msr daifclr, #2" : : : "memory");
}

static inline void disable_interrupts(void)
{
        __asm__ volatile("msr daifset, #2" : : : "memory");
}

/* Enable interrupts and wait for one. None is lost: `wfi` ends with one that is pending, masked or not. */
static inline void wait_for_interrupt(void)
{
        __asm__ volatile("wfi; msr daifclr, #2; isb" : : : "memory");
}

static inline void relax(void)
{
        __asm__ volatile("yield" : : : "memory");
}

/* What was stored is there for other CPUs and for devices before what follows. */
static inline void barrier(void)
{
        __asm__ volatile("dsb sy" : : : "memory");
}

static inline __attribute__((noreturn)) void halt(void)
{
        for (;;)
                __asm__ volatile("msr daifset, #15; wfi" : : : "memory");
}

static inline u32 this_cpu(void)
{
        return read_register(mpidr_el1) & 0xf;
}

/* The serial port, polled. It is on from the first character on that is sent. */

static inline void put_char(char character)
{
        static u32 on;

        if (!on) {
                *at32(UART_LCRH) = LCRH_8_BITS_FIFOS;
                *at32(UART_CR) = CR_ON;
                on = 1;
        }
        while (*at32(UART_FR) & FR_TXFF)
                relax();
        *at32(UART_DR) = (u8)character;
}

/* What was typed, or -1. */
static inline int get_char(void)
{
        return *at32(UART_FR) & FR_RXFE ? -1 : (int)(*at32(UART_DR) & 0xff);
}

/* Power. */

static inline u64 psci(u64 function, u64 target, u64 entry, u64 context)
{
        register u64 x0 __asm__("x0") = function;
        register u64 x1 __asm__("x1") = target;
        register u64 x2 __asm__("x2") = entry;
        register u64 x3 __asm__("x3") = context;

        __asm__ volatile("hvc #0" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3) : : "memory");
        return x0;
}

static inline __attribute__((noreturn)) void power_off(void)
{
        psci(SYSTEM_OFF, 0, 0, 0);
        halt();
}

static inline __attribute__((noreturn)) void reboot(void)
{
        psci(SYSTEM_RESET, 0, 0, 0);
        halt();
}

/* Have another CPU call secondary_main(); returns 0 when it will, another number where there is none. */
static inline u64 start_cpu(u64 cpu)
{
        return psci(CPU_ON, cpu, (u64)start_secondary, cpu);
}

/* Interrupts. */

static void (*tick_handler)(void);
static void (*interrupt_handler)(u32 intid);
static u64 tick_period;

/* Define what start_ticks() takes. */
#define INTERRUPT_HANDLER(name) static void name(void)

void take_interrupt(void)
{
        u32 intid = read_register(icc_iar1_el1);

        if (intid == NO_INTID)
                return;
        if (intid == TIMER_INTID && tick_handler)
                tick_handler();
        else if (interrupt_handler)
                interrupt_handler(intid);
        else
                unexpected();
        write_register(icc_eoir1_el1, intid);
}

void __attribute__((noreturn)) unexpected(void)
{
        put_text("unexpected interrupt or fault\n");
        halt();
}

/* The first redistributor, which says that it is CPU 0's: they lie from below the distributor downwards. */
static inline u64 first_redistributor(void)
{
        u64 frame = GICD - GICR_LEN;

        while (TYPER_NUMBER(*at32(frame + GICR_TYPER)))
                frame -= GICR_LEN;
        return frame;
}

static inline u64 redistributor(u32 cpu)
{
        return first_redistributor() + cpu * GICR_LEN;
}

/* Let all SGIs, and the PPI, through to this CPU. */
static inline void setup_cpu_interface(u32 ppi)
{
        u64 frame = redistributor(this_cpu());

        *at32(frame + GICR_WAKER) &= ~WAKER_PROCESSOR_SLEEP;
        while (*at32(frame + GICR_WAKER) & WAKER_CHILDREN_ASLEEP)
                relax();
        *at32(frame + GICR_IGROUPR0) = ~0u;
        *at32(frame + GICR_ISENABLER0) = 0xffff | 1u << ppi;
        write_register(icc_sre_el1, 7); /* system registers, no bypass */
        write_register(icc_pmr_el1, 0xf0);
        write_register(icc_igrpen1_el1, 1);
}

static inline void setup_distributor(void)
{
        *at32(GICD_CTLR) = GICD_CTLR_ARE;
        *at32(GICD_CTLR) = GICD_CTLR_ARE | GICD_CTLR_GROUP1;
}

/* Let a shared interrupt through to CPU 0, where GICD_IROUTER sends it from reset on. */
static inline void enable_shared(u32 intid)
{
        *at32(GICD_IGROUPR + 4 * (intid / 32)) |= 1u << intid % 32;
        *at32(GICD_ISENABLER + 4 * (intid / 32)) = 1u << intid % 32;
}

/* Have the handler called that often a second, from enable_interrupts() on. Each call ends in end_of_tick(). */
static inline void start_ticks(u32 hz, void (*handler)(void))
{
        tick_handler = handler;
        tick_period = read_register(cntfrq_el0) / hz;
        setup_distributor();
        setup_cpu_interface(TIMER_INTID);
        write_register(cntv_tval_el0, tick_period);
        write_register(cntv_ctl_el0, 1);
}

static inline void end_of_tick(void)
{
        write_register(cntv_tval_el0, tick_period);
}

#endif
