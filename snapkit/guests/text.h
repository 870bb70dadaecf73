/*
 * What the runtimes of all architectures have in common: types, and text on the serial port, which is a matter of
 * put_char(). Each rt.h includes it.
 */
#ifndef SNAPKIT_GUESTS_TEXT_H
#define SNAPKIT_GUESTS_TEXT_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

static inline void put_char(char character);

static inline void put_text(const char *text)
{
        while (*text)
                put_char(*text++);
}

static inline void put_hex(u32 value)
{
        for (int shift = 28; shift >= 0; shift -= 4)
                put_char("0123456789abcdef"[value >> shift & 15]);
}

static inline void put_decimal(u32 value)
{
        char digits[11];
        char *first = digits + 10;

        *first = 0;
        do
                *--first = '0' + value % 10;
        while (value /= 10);
        put_text(first);
}

#endif
