from libc.stdint cimport uint8_t, uint32_t

cdef extern from "byteorder.h" nogil:
    uint32_t load_be32(const uint8_t* p) noexcept
    void store_be32(uint8_t* p, uint32_t value) noexcept
    const int DCMHAUL_DEBUG
    const int DCMHAUL_SANITIZE
    const int DCMHAUL_TRACE
