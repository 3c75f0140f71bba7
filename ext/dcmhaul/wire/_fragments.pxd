# What waits to be sent on one association: whole PDUs, and messages that are cut into P-DATA-TF.
from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef enum:
    SEGMENTS_MAX = 512          # entries of the plan; two a PDU, below IOV_MAX
    P_DATA_HEADER_SIZE = 12     # PDU header and PDV header: one PDV a PDU
    PDV_OVERHEAD = 6            # PDU length - fragment length with one PDV a PDU
    PDU_LENGTH_DEFAULT = 1048576        # what is sent at most where no limit is set
    REST_LENGTH_MAX = 1048576           # bytes of a half-sent PDU that are read into memory to end it


cdef enum ItemKind:
    ITEM_BYTES = 0              # encoded PDUs, sent as they are
    ITEM_MEMORY = 1             # command or dataset bytes in memory
    ITEM_FILE = 2               # dataset bytes in a file


cdef struct Item:
    ItemKind kind
    const uint8_t* data
    int fd
    int64_t offset
    int64_t remaining           # bytes that are not in the plan yet
    uint8_t context_id
    uint8_t control             # message control header: bit 0 command
    bint last                   # the end of this item ends the command set or dataset


cdef struct Segment:
    const uint8_t* data         # NULL: a range of a file
    int fd
    int64_t offset
    int64_t length              # bytes that are still to be sent
    bint boundary               # nothing of the PDU that begins here is sent yet


cdef class SendQueue:
    cdef Item* items
    cdef int item_head
    cdef int item_count
    cdef int item_capacity
    cdef list owners            # keeps the memory of each item alive, in step with `items`
    cdef object rest            # what `cut` read of the file of the half-sent PDU
    cdef Segment segments[SEGMENTS_MAX]
    cdef int segment_head
    cdef int segment_count
    cdef uint8_t headers[SEGMENTS_MAX * P_DATA_HEADER_SIZE]
    cdef uint32_t fragment_max
    cdef readonly int64_t pending           # bytes queued since the queue was last empty
    cdef readonly int64_t pdus_sent
    cdef readonly int64_t dataset_bytes_sent

    cdef int push(self, ItemKind kind, const uint8_t* data, int fd, int64_t offset, int64_t length,
                  uint8_t context_id, uint8_t control, bint last, object owner) except -1
    cdef int fill(self) noexcept nogil
    cdef int hold(self, Segment* segment) except -1
    cdef void release(self)
