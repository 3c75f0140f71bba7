# PDU framing of one association: what arrives in the slab becomes events.
from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef enum:
    # Bytes of the slab that recv fills; a whole number of pages, small enough for the L2 cache.
    SLAB_SIZE = 524288
    SLABS_POOLED_MAX = 16           # slabs that the free list keeps
    SLICES_MAX = 512                # dataset slices handed out at once; below IOV_MAX
    PDU_HEADER_SIZE = 6             # PS3.8 §9.3.1: type, reserved, length
    PDV_HEADER_SIZE = 6             # PS3.8 §9.3.5.1: length, context ID, message control header
    COMMAND_LENGTH_MAX = 65536      # bytes of one command set
    ASSOCIATE_LENGTH_MAX = 1048576  # bytes of an A-ASSOCIATE-RQ or -AC, as DCMTK has it
    P_DATA_SLACK = 12               # bytes over the announced maximum that are tolerated and counted
    FLOOR_WINDOW = 16384            # unfinished fragments over which their mean length is checked
    FLOOR_LENGTH = 64               # bytes: the least mean length of unfinished fragments


cdef enum:
    PDU_EVENT = 1
    COMMAND_EVENT = 2
    DATA_EVENT = 3


cdef enum Fault:
    FAULT_NONE = 0
    FAULT_UNKNOWN_PDU = -1
    FAULT_FIXED_LENGTH = -2
    FAULT_ASSOCIATE_LENGTH = -3
    FAULT_P_DATA_LENGTH = -4
    FAULT_P_DATA_UNEXPECTED = -5
    FAULT_PDV_LENGTH = -6
    FAULT_CONTEXT = -7
    FAULT_CONTEXT_CHANGED = -8
    FAULT_COMMAND_EXPECTED = -9
    FAULT_DATASET_EXPECTED = -10
    FAULT_COMMAND_LENGTH = -11
    FAULT_FRAGMENT_FLOOR = -12
    FAULT_FRAGMENT_ODD = -13


cdef enum Phase:
    PHASE_PDU_HEADER = 0
    PHASE_PDU_BODY = 1
    PHASE_PDV_HEADER = 2
    PHASE_PDV_BODY = 3


cdef enum MessagePhase:
    MESSAGE_NONE = 0        # the next PDV begins a command
    MESSAGE_COMMAND = 1     # inside a command set
    MESSAGE_UNDECIDED = 2   # a command was handed out; expect_dataset() has not been called
    MESSAGE_DATASET = 3     # inside, or before, the dataset of that command


cdef struct Slice:
    const uint8_t* data
    Py_ssize_t length


cdef class PduReader:
    cdef uint8_t* slab              # borrowed from the pool while bytes are in it
    cdef Py_ssize_t head            # first unread byte
    cdef Py_ssize_t tail            # one past the last byte that arrived
    cdef Phase phase
    cdef MessagePhase message
    cdef uint32_t pdu_remaining     # bytes of the current PDU after what was read
    cdef uint32_t pdv_remaining     # bytes of the current fragment after what was read
    cdef uint32_t pdu_length_max    # as announced; 0 = unlimited
    cdef bint strict
    cdef bint p_data_accepted
    cdef bint pdv_last
    cdef bint skipping
    cdef bint in_bulk               # the last receive brought so much that the peer must be streaming
    cdef readonly bint slices_out   # the caller looks at slices: nothing may move
    cdef uint8_t accepted[256]      # by context ID
    cdef uint8_t body_type
    cdef uint8_t message_context
    cdef uint8_t* body              # the variable field of a PDU other than P-DATA-TF, as it arrives
    cdef Py_ssize_t body_length
    cdef Py_ssize_t body_capacity
    cdef uint8_t* command_buffer
    cdef Py_ssize_t command_length
    cdef Py_ssize_t command_capacity
    cdef Slice* slices              # allocated when the first dataset arrives
    cdef int slice_count
    cdef int64_t slices_length
    cdef bint slices_last
    cdef int64_t floor_bytes
    cdef int floor_count
    cdef int deferred               # the fault that ends the stream, once it was met
    cdef uint32_t fault_value       # the length or ID that was wrong
    cdef readonly int64_t pdus_received
    cdef readonly int64_t dataset_bytes_received
    cdef readonly int64_t odd_fragments
    cdef readonly int64_t oversized_pdus

    cdef bint reserve(self) except -1
    cdef int advance(self) except? -99
    cdef int read_pdu_header(self) noexcept nogil
    cdef int read_pdv_header(self) noexcept nogil
    cdef int read_body(self) except? -99
    cdef int read_fragment(self) except? -99


cdef uint8_t* borrow_slab() noexcept
cdef void return_slab(uint8_t* slab) noexcept
