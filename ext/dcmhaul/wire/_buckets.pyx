# cython: language_level=3, binding=True, embedsignature=True
# cython: boundscheck=False, wraparound=False, cdivision=True
# In place of bounds checks: `bucket_of` clamps its result to 0..BUCKET_COUNT-1, and the length of
# every buffer is compared when it is taken.
"""Latency buckets: log-linear int64 counts of nanoseconds. No clock, no labels, no output."""

from cpython.buffer cimport (
    PyBUF_CONTIG,
    PyBUF_CONTIG_RO,
    PyBUF_FORMAT,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.math cimport ceil
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memset

cdef extern from *:
    """
    static inline int dcmhaul_top_bit(unsigned long long value) {
    #if defined(__GNUC__) || defined(__clang__)
        return 63 - __builtin_clzll(value);
    #else
        int bit = 0;
        while (value >>= 1) bit++;
        return bit;
    #endif
    }
    """
    int top_bit "dcmhaul_top_bit"(unsigned long long value) noexcept nogil

SLOTS = <int> SLOT_COUNT
RELATIVE_ERROR = 1.0 / (2 * STEPS)
NANOSECONDS_MAX = (<int64_t> 1 << VALUE_BITS) - 1


cdef inline Py_ssize_t bucket_of(int64_t value) noexcept nogil:
    """Which bucket counts the value: exact below 2 * STEPS, then STEPS a power of two."""
    cdef int shift
    if value < STEPS:
        return <Py_ssize_t> value if value > 0 else 0
    if value >> VALUE_BITS:
        return BUCKET_COUNT - 1
    shift = top_bit(<uint64_t> value) - STEP_BITS
    return (<Py_ssize_t> shift << STEP_BITS) + <Py_ssize_t> (value >> shift)


cdef inline int64_t lowest_of(Py_ssize_t bucket) noexcept nogil:
    """The smallest value that the bucket counts; the inverse of `bucket_of`."""
    cdef int shift
    if bucket < 2 * STEPS:
        return bucket
    shift = <int> (bucket >> STEP_BITS) - 1
    return (<int64_t> (bucket & (STEPS - 1)) + STEPS) << shift


cdef class Buckets:
    """Counts of durations, in nanoseconds. Everything in it is a sum, so merging is adding.

    A value is known to within its bucket: below 64 ns exactly, above that `quantile` is off by at
    most RELATIVE_ERROR (1/64) of the true value. Negative values count as 0, values above
    NANOSECONDS_MAX (about 4.9 hours) as that.

    storage: a writable, contiguous, 8-byte aligned buffer of SLOTS int64, so that the buckets can
    be part of a larger array; the numbers in it are taken over as they are. None: memory of its
    own. One thread at a time writes to it.
    """

    def __cinit__(self, storage=None):
        self._pinned = False
        if storage is None:
            storage = bytearray(SLOT_COUNT * sizeof(int64_t))
        PyObject_GetBuffer(storage, &self._view, PyBUF_CONTIG)
        self._pinned = True
        if self._view.len != SLOT_COUNT * <Py_ssize_t> sizeof(int64_t):
            raise ValueError(
                f"buckets need {SLOT_COUNT * sizeof(int64_t)} bytes, got {self._view.len}"
            )
        if <uintptr_t> self._view.buf % sizeof(int64_t):
            raise ValueError("buckets need memory that is aligned to 8 bytes")
        self._slots = <int64_t*> self._view.buf

    def __dealloc__(self):
        if self._pinned:
            PyBuffer_Release(&self._view)

    def record(self, int64_t nanoseconds):
        """Counts one value."""
        self._slots[bucket_of(nanoseconds)] += 1
        self._slots[BUCKET_COUNT] += nanoseconds if nanoseconds > 0 else 0

    def record_many(self, nanoseconds):
        """Counts every item of a contiguous buffer of int64 (an `array('q')`, a NumPy array)."""
        cdef Py_buffer view
        cdef const int64_t* values
        cdef int64_t total = 0
        cdef Py_ssize_t i, n
        PyObject_GetBuffer(nanoseconds, &view, PyBUF_CONTIG_RO | PyBUF_FORMAT)
        try:
            if view.itemsize != sizeof(int64_t) or view.format[0] not in (c'q', c'l'):
                raise ValueError("record_many needs a buffer of int64")
            values = <const int64_t*> view.buf
            n = view.len // <Py_ssize_t> sizeof(int64_t)
            with nogil:
                for i in range(n):
                    self._slots[bucket_of(values[i])] += 1
                    total += values[i] if values[i] > 0 else 0
            self._slots[BUCKET_COUNT] += total
        finally:
            PyBuffer_Release(&view)

    def merge(self, Buckets other not None):
        """Adds the other's counts to these; the other keeps its own."""
        cdef Py_ssize_t i
        for i in range(SLOT_COUNT):
            self._slots[i] += other._slots[i]

    def clear(self):
        """Forgets every value."""
        memset(self._slots, 0, SLOT_COUNT * sizeof(int64_t))

    @property
    def count(self):
        """How many values were counted."""
        cdef int64_t n = 0
        cdef Py_ssize_t i
        for i in range(BUCKET_COUNT):
            n += self._slots[i]
        return n

    @property
    def total(self):
        """The sum of the values, in nanoseconds; exact."""
        return self._slots[BUCKET_COUNT]

    def quantile(self, double q):
        """The q-quantile in nanoseconds (0 <= q <= 1): the middle of the bucket that holds it.

        None where nothing was counted. A tail is worth printing with 10/(1-q) values or more: see
        `has_tail`. Quantiles are never averaged: merge, then ask.
        """
        cdef int64_t rank, seen = 0, lowest
        cdef Py_ssize_t i
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile lies between 0 and 1, got {q}")
        count = self.count
        if count == 0:
            return None
        rank = max(1, <int64_t> ceil(q * <double> count))
        for i in range(BUCKET_COUNT):
            seen += self._slots[i]
            if seen >= rank:
                break
        lowest = lowest_of(i)
        return (lowest + lowest_of(i + 1) - 1) // 2 if i < BUCKET_COUNT - 1 else lowest

    def has_tail(self, double q):
        """Whether enough values were counted, 10/(1-q), for the q-quantile to say something."""
        # The small term keeps 10/(1-0.99), which is a hair above 1000 in binary, at 1000.
        return q < 1.0 and self.count * (1.0 - q) >= 10.0 - 1e-9

    def count_at_most(self, int64_t nanoseconds):
        """How many values are <= the bound, as far as whole buckets tell.

        A bucket that the bound cuts through counts as above it, so the answer may miss values that
        are within 1/32 below the bound; it never counts one that is above it.
        """
        cdef int64_t n = 0
        cdef Py_ssize_t i
        for i in range(BUCKET_COUNT - 1):
            if lowest_of(i + 1) - 1 > nanoseconds:
                break
            n += self._slots[i]
        return n
