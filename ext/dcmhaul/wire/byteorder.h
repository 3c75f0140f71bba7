/* Unaligned big and little endian loads and stores. No Python here. */
#ifndef DCMHAUL_BYTEORDER_H
#define DCMHAUL_BYTEORDER_H

#include <stdint.h>

static inline uint32_t load_be32(const uint8_t *p)
{
    return ((uint32_t)p[0] << 24) | ((uint32_t)p[1] << 16) | ((uint32_t)p[2] << 8) | (uint32_t)p[3];
}

static inline void store_be32(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 24);
    p[1] = (uint8_t)(value >> 16);
    p[2] = (uint8_t)(value >> 8);
    p[3] = (uint8_t)value;
}

#ifndef DCMHAUL_DEBUG
#define DCMHAUL_DEBUG 0
#endif
#ifndef DCMHAUL_SANITIZE
#define DCMHAUL_SANITIZE 0
#endif
#ifndef DCMHAUL_TRACE
#define DCMHAUL_TRACE 0
#endif

#endif
