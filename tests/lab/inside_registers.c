/*
 * Runs in an aarch64 guest: keeps values in every SVE register and signs pointers with every key, computes for a while
 * without a system call, and says whether it all came out. Arguments: CPU number and count of rounds. Prints a line each,
 * "R<cpu> <round> <vector length, bytes> <faults, bits>", and calls nothing but write and exit: there is no C library.
 *
 * Faults: 1 a Z register, 2 a P register, 4 FFR, 8 a signature made again is another, 16 a signature does not check,
 * 32 nothing was signed. A system call may zero SVE registers, so each round loads them anew.
 * Arm Architecture Reference Manual, "The Scalable Vector Extension" and "Pointer authentication".
 */

#define VL_MAX 256
#define SPINS 4000000L

typedef unsigned char byte;

static byte z_in[32 * VL_MAX], z_out[32 * VL_MAX], p_in[16 * VL_MAX / 8], p_out[17 * VL_MAX / 8];
static char line[64];

static long call(long number, long a, long b, long c)
{
    register long x8 asm("x8") = number;
    register long x0 asm("x0") = a;
    register long x1 asm("x1") = b;
    register long x2 asm("x2") = c;
    asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
}

static char *put(char *at, long value)
{
    char digits[20];
    int n = 0;
    do
        digits[n++] = '0' + value % 10;
    while (value /= 10);
    while (n)
        *at++ = digits[--n];
    return at;
}

static long differ(const byte *a, const byte *b, long length)
{
    long found = 0;
    for (long i = 0; i < length; i++)
        found |= a[i] ^ b[i];
    return found != 0;
}

/* clang-format off */
#define Z(op, at, n) op " z" #n ", [" at ", #" #n ", mul vl]\n"
#define P(op, at, n) op " p" #n ", [" at ", #" #n ", mul vl]\n"
#define FOUR(m, op, at, a, b, c, d) m(op, at, a) m(op, at, b) m(op, at, c) m(op, at, d)
#define SIXTEEN(m, op, at) FOUR(m, op, at, 0, 1, 2, 3) FOUR(m, op, at, 4, 5, 6, 7) \
    FOUR(m, op, at, 8, 9, 10, 11) FOUR(m, op, at, 12, 13, 14, 15)
#define THIRTY_TWO(m, op, at) SIXTEEN(m, op, at) FOUR(m, op, at, 16, 17, 18, 19) FOUR(m, op, at, 20, 21, 22, 23) \
    FOUR(m, op, at, 24, 25, 26, 27) FOUR(m, op, at, 28, 29, 30, 31)
/* clang-format on */

static long round_of(long cpu, long n, long vl)
{
    long faults = 0, spins = SPINS + cpu * SPINS / 2, again, failed; /* not in step: one computes while another prints */
    long pointer = (long)z_in, signer = n * 0x9e3779b97f4a7c15L + cpu;

    for (long i = 0; i < 32 * vl; i++)
        z_in[i] = (byte)(i * 7 + i / 251 + n * 13 + cpu * 101 + 1);
    for (long i = 0; i < 16 * vl / 8; i++)
        p_in[i] = (byte)(i * 11 + n * 5 + cpu * 57 + 1);

    asm volatile(
        "mov x9, %[pointer]\n mov x10, %[pointer]\n mov x11, %[pointer]\n mov x12, %[pointer]\n"
        "pacia x9, %[signer]\n pacib x10, %[signer]\n pacda x11, %[signer]\n pacdb x12, %[signer]\n"
        "pacga x13, %[pointer], %[signer]\n"
        "setffr\n" THIRTY_TWO(Z, "ldr", "%[z_in]") SIXTEEN(P, "ldr", "%[p_in]")
        "1: subs %[spins], %[spins], #1\n b.ne 1b\n"
        THIRTY_TWO(Z, "str", "%[z_out]") SIXTEEN(P, "str", "%[p_out]")
        "rdffr p0.b\n str p0, [%[p_out], #16, mul vl]\n"
        /* Each key signs once more. */
        "mov x14, %[pointer]\n pacia x14, %[signer]\n eor %[again], x14, x9\n"
        "mov x14, %[pointer]\n pacib x14, %[signer]\n eor x14, x14, x10\n orr %[again], %[again], x14\n"
        "mov x14, %[pointer]\n pacda x14, %[signer]\n eor x14, x14, x11\n orr %[again], %[again], x14\n"
        "mov x14, %[pointer]\n pacdb x14, %[signer]\n eor x14, x14, x12\n orr %[again], %[again], x14\n"
        "pacga x14, %[pointer], %[signer]\n eor x14, x14, x13\n orr %[again], %[again], x14\n"
        /* Then what was signed before must check. A CPU with FEAT_FPAC faults instead, which ends the program. */
        "mov x15, x9\n"
        "autia x9, %[signer]\n eor %[failed], x9, %[pointer]\n"
        "autib x10, %[signer]\n eor x14, x10, %[pointer]\n orr %[failed], %[failed], x14\n"
        "autda x11, %[signer]\n eor x14, x11, %[pointer]\n orr %[failed], %[failed], x14\n"
        "autdb x12, %[signer]\n eor x14, x12, %[pointer]\n orr %[failed], %[failed], x14\n"
        "eor %[spins], x15, %[pointer]\n orr %[spins], %[spins], x13\n"
        : [spins] "+&r"(spins), [again] "=&r"(again), [failed] "=&r"(failed)
        : [pointer] "r"(pointer), [signer] "r"(signer), [z_in] "r"(z_in), [z_out] "r"(z_out), [p_in] "r"(p_in),
          [p_out] "r"(p_out)
        : "x9", "x10", "x11", "x12", "x13", "x14", "x15", "cc", "memory", "ffr",
          "z0", "z1", "z2", "z3", "z4", "z5", "z6", "z7", "z8", "z9", "z10", "z11", "z12", "z13", "z14", "z15",
          "z16", "z17", "z18", "z19", "z20", "z21", "z22", "z23", "z24", "z25", "z26", "z27", "z28", "z29", "z30", "z31",
          "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10", "p11", "p12", "p13", "p14", "p15");

    faults |= differ(z_in, z_out, 32 * vl);
    faults |= differ(p_in, p_out, 16 * vl / 8) << 1;
    for (long i = 0; i < vl / 8; i++)
        if (p_out[16 * vl / 8 + i] != 0xff)
            faults |= 4;
    return faults | (again != 0) << 3 | (failed != 0) << 4 | (spins == 0) << 5;
}

static long number_at(const char *text)
{
    long value = 0;
    while (*text)
        value = value * 10 + (*text++ - '0');
    return value;
}

__attribute__((used)) static void program(long *stack)
{
    char **arguments = (char **)(stack + 1);
    long cpu = number_at(arguments[1]), count = number_at(arguments[2]), vl;

    asm("cntb %0" : "=r"(vl));
    for (long n = 1; n <= count; n++) {
        long faults = round_of(cpu, n, vl);
        char *at = line;
        *at++ = 'R';
        at = put(at, cpu);
        *at++ = ' ';
        at = put(at, n);
        *at++ = ' ';
        at = put(at, vl);
        *at++ = ' ';
        at = put(at, faults);
        *at++ = '\n';
        call(64, 1, (long)line, at - line); /* write */
    }
    call(94, 0, 0, 0); /* exit_group */
}

asm(".globl _start\n_start: mov x0, sp\n b program\n");
