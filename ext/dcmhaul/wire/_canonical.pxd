# The content of a dataset as a stream of bytes that no re-encoding changes.
from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef enum:
    NESTING_MAX = 64                # sequences and encapsulated values within each other
    PLACES_MAX = 130                # the dataset, then a sequence and an item for each of them
    PADDING_MAX = 65536             # bytes of padding that are taken off; a longer run is content
    TRAILER_SIZE = 13               # length, tag and kind of a record


cdef enum Class:
    CLASS_UNKNOWN = 0               # not in the dictionary: private, or newer than it
    CLASS_BINARY = 1
    CLASS_TEXT = 2                  # what stands after the last character is padding
    CLASS_SEQUENCE = 3


cdef enum PlaceKind:
    PLACE_DATASET = 0
    PLACE_ITEM = 1
    PLACE_SEQUENCE = 2
    PLACE_FRAGMENTS = 3


cdef enum PlaceForm:
    PLACE_IMPLICIT = 0
    PLACE_EXPLICIT = 1
    PLACE_DETECT = 2                # the first VR decides
    PLACE_UNKNOWN = 3               # in UN: implicit, but for encoders that kept the explicit form


cdef enum Phase:
    PHASE_HEADER = 0
    PHASE_PEEK = 1                  # the first 8 bytes of a value that may be a sequence
    PHASE_VALUE = 2


cdef struct Place:
    uint8_t kind
    uint8_t form
    uint8_t big_endian
    uint8_t items                   # an item was met (a sequence), or the offset table (fragments)
    uint32_t tag
    int64_t end                     # where it ends, or -1 where a delimiter says so


cdef class ElementClasses:
    cdef uint32_t* tags             # ascending
    cdef uint8_t* classes           # of each of them
    cdef Py_ssize_t count
    cdef int find(self, uint32_t tag) noexcept


cdef struct Output:
    uint8_t* data
    Py_ssize_t size                 # bytes allocated
    Py_ssize_t used                 # bytes written


cdef class Canonicaliser:
    cdef Place places[PLACES_MAX]
    cdef int top
    cdef int nesting
    cdef Phase phase
    cdef uint8_t held[12]           # a header, or the start of a value, that straddles two feeds
    cdef int held_length
    cdef int64_t position           # offset of the first byte that is not yet taken
    cdef uint32_t tag               # of the current element ...
    cdef uint8_t vr[2]              # ... its VR, zeros in implicit form ...
    cdef uint32_t length            # ... and its length field
    cdef int64_t remaining          # bytes of the current value that are still to come
    cdef int64_t written            # bytes of the current value in the output
    cdef bint silent                # the current value is left out
    cdef bint is_text
    cdef int unit                   # big endian: bytes of one number, else 1
    cdef int unit_have
    cdef uint8_t unit_bytes[8]
    cdef Py_ssize_t padding         # trailing spaces and NULs of the current text so far
    cdef uint32_t outer             # the element at depth 0 that is being walked
    cdef Output main
    cdef Output side                # of the elements that are kept apart
    cdef bint is_side
    cdef list cuts                  # of `feed_elements`, else None
    cdef Py_ssize_t cut_from
    cdef ElementClasses dictionary
    cdef frozenset apart
    cdef str fault
    cdef int64_t fault_at
    cdef Output* output(self) noexcept
    cdef int reserve(self, Output* out, Py_ssize_t more) except -1
    cdef int put(self, const uint8_t* data, Py_ssize_t length) except -1
    cdef int record(self, uint8_t kind, uint32_t tag, int64_t length) except -1
    cdef int mark(self, uint8_t kind) except -1
    cdef int fail(self, str text, int64_t at) except -1
    cdef int cut(self) except -1
    cdef int run(self, const uint8_t* data, Py_ssize_t length) except -1
    cdef int header_size(self) noexcept
    cdef int take_header(self, int size) except -1
    cdef int take_in_sequence(self, Place* place) except -1
    cdef int begin_element(self, Place* place) except -1
    cdef int open_undefined(self, Place* place, int known) except -1
    cdef int push(self, uint8_t kind, uint8_t form, uint8_t big_endian, int64_t end) except -1
    cdef int pop(self) except -1
    cdef int close_ended(self) except -1
    cdef int begin_value(self, int known, bint fragment) except -1
    cdef int decide(self) except -1
    cdef int take_value(self, const uint8_t* data, Py_ssize_t length) except -1
    cdef int swap(self, const uint8_t* data, Py_ssize_t length) except -1
    cdef int end_value(self) except -1
    cdef bytes drain(self, Output* out)
