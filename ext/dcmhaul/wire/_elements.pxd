# The walk over the element headers of a dataset: PS3.5 §7, values are passed over.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t


cdef enum:
    DEPTH_MAX = 64                  # sequences and encapsulated values within each other
    LEVELS_MAX = 130                # the dataset, then a sequence and an item for each depth
    SHORT_HEADER_SIZE = 8           # tag and length, or tag, VR and 16-bit length
    LONG_HEADER_SIZE = 12           # tag, VR, two reserved bytes, 32-bit length
    CAPTURE_TAGS_MAX = 256


cdef enum Step:
    STEP_NEED_MORE = 1              # all bytes were taken
    STEP_ELEMENT = 2                # a header at depth 0 that somebody asked for; its value follows
    STEP_STOPPED = 3                # a tag outside the bounds: its header was not taken


cdef enum Fault:
    FAULT_NONE = 0
    FAULT_STRAY_DELIMITER = -1
    FAULT_ITEM_EXPECTED = -2
    FAULT_UNDEFINED_LENGTH = -3
    FAULT_FRAGMENT_LENGTH = -4
    FAULT_DEPTH = -5
    FAULT_ELEMENTS = -6
    FAULT_TRUNCATED = -7
    FAULT_UNFINISHED = -8


cdef enum Kind:
    KIND_DATASET = 0                # elements, to the end of the data
    KIND_ITEM = 1                   # elements, to an Item Delimitation Item
    KIND_SEQUENCE = 2               # items, to a Sequence Delimitation Item
    KIND_FRAGMENTS = 3              # items of defined length that hold bytes, to a delimiter


cdef enum Form:
    FORM_IMPLICIT = 0
    FORM_EXPLICIT = 1
    FORM_DETECT = 2                 # the first VR decides: two capitals are explicit
    FORM_DETECT_KNOWN = 3           # in UN: implicit, but for encoders that kept the explicit form


cdef enum:
    VR_UNKNOWN = 0
    VR_SHORT = 1                    # the 8-byte header
    VR_LONG = 2                     # the 12-byte header


cdef struct Level:
    uint8_t kind
    uint8_t form
    uint8_t big_endian


cdef struct Walk:
    Level levels[LEVELS_MAX]
    int top                         # index of the innermost level
    int depth                       # levels that are sequences or fragments
    int depth_max
    uint8_t held[LONG_HEADER_SIZE]  # a header that straddles two feeds
    int held_length
    int64_t position                # offset of the first byte that is not yet taken
    int64_t remaining               # bytes of the current value that are still to come
    int64_t elements                # headers so far, items included
    int64_t elements_max            # 0: no limit
    uint32_t stop_below             # depth-0 tags below this one end the walk ...
    uint32_t stop_above             # ... and those above this one
    uint32_t tag                    # of the current element ...
    uint32_t length                 # ... its length field ...
    uint8_t vr[2]                   # ... its VR, zeros in implicit form ...
    int header_size                 # ... and the bytes of its header
    bint report_all                 # STEP_ELEMENT for every element at depth 0
    uint32_t* wanted                # ascending: STEP_ELEMENT for these
    int wanted_count


# Of an explicit header of 8 bytes: whether 4 more follow. Of two letters: whether PS3.5 knows them.
cdef bint is_long(const uint8_t* header) noexcept nogil
cdef bint is_known_vr(const uint8_t* vr) noexcept nogil


cdef class ElementWalker:
    cdef Walk walk
    cdef int fault                  # the fault that ended the walk, or FAULT_NONE
    cdef bint is_stopped
    cdef bint capturing             # the current value is kept
    cdef bytearray partial          # of a kept value that straddles two feeds
    cdef Py_ssize_t capture_limit
    cdef readonly dict captured
    cdef readonly dict vrs
    cdef readonly list elements
    cdef int run(self, const uint8_t* data, Py_ssize_t length) except -1
    cdef int keep(self, uint32_t tag, bytes value) except -1
    cdef int begin_element(self) except -1
    cdef int fail(self, int fault) except -1
