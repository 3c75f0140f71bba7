from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t


cdef enum:
    STEP_BITS = 5                 # 32 linear steps an octave
    VALUE_BITS = 44               # nanoseconds below 2**44, about 4.9 hours; above: the last bucket
    STEPS = 1 << STEP_BITS
    BUCKET_COUNT = (VALUE_BITS - STEP_BITS + 1) * STEPS
    SLOT_COUNT = BUCKET_COUNT + 1           # the buckets, then the sum of all values


cdef class Buckets:
    cdef int64_t* _slots          # SLOT_COUNT of them, in the memory that _view pins
    cdef Py_buffer _view
    cdef bint _pinned
