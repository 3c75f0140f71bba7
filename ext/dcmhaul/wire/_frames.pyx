# cython: language_level=3, binding=True, embedsignature=True, boundscheck=False, wraparound=False, cdivision=True
# In place of bounds checks: every read of the slab is preceded by a comparison with `tail - head`,
# and every length that a peer sends is compared with its limit before it is used.
"""Framing of received PDUs: the slab that recv fills, the PDU and PDV headers, the events they make.

Must not make system calls, and must not know what a message means.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_READ
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from dcmhaul.wire.byteorder cimport DCMHAUL_DEBUG, DCMHAUL_SANITIZE, DCMHAUL_TRACE, load_be32

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError

BUILD = {
    "debug": bool(DCMHAUL_DEBUG),
    "sanitize": bool(DCMHAUL_SANITIZE),
    "trace": bool(DCMHAUL_TRACE),
}
NEED_DATA = 0
PDU = 1
COMMAND = 2
DATA = 3

# One list for the process: it holds no state of an association, only memory ready for reuse.
cdef uint8_t* pool[SLABS_POOLED_MAX]
cdef int pooled = 0


cdef uint8_t* borrow_slab() noexcept:
    global pooled
    if pooled > 0:
        pooled -= 1
        return pool[pooled]
    return <uint8_t*>malloc(SLAB_SIZE)


cdef void return_slab(uint8_t* slab) noexcept:
    global pooled
    if pooled < SLABS_POOLED_MAX:
        pool[pooled] = slab
        pooled += 1
    else:
        free(slab)


cdef object raise_fault(int fault, uint32_t value):
    """The exception of a fault, with the A-ABORT that answers it (PS3.8 §9.3.8)."""
    if fault == FAULT_UNKNOWN_PDU:
        raise RemoteProtocolError(
            f"PDU type 0x{value:02X} is not one of 01H-07H (PS3.8 §9.3.1)", source=2, reason=1)
    if fault == FAULT_FIXED_LENGTH:
        raise RemoteProtocolError(
            f"PDU length {value} where PS3.8 §9.3 fixes it at 4", source=2, reason=6)
    if fault == FAULT_ASSOCIATE_LENGTH:
        raise RemoteProtocolError(
            f"A-ASSOCIATE PDU length {value} is above {ASSOCIATE_LENGTH_MAX}", source=2, reason=6)
    if fault == FAULT_P_DATA_LENGTH:
        raise RemoteProtocolError(
            f"P-DATA-TF length {value} is outside what was announced (PS3.8 §D.1)",
            source=2, reason=6)
    if fault == FAULT_P_DATA_UNEXPECTED:
        raise RemoteProtocolError(
            "P-DATA-TF outside an established association (PS3.8 §9.2)", source=2, reason=2)
    if fault == FAULT_PDV_LENGTH:
        raise RemoteProtocolError(
            f"PDV length {value} does not fit its P-DATA-TF (PS3.8 §9.3.5.1)", source=2, reason=6)
    if fault == FAULT_CONTEXT:
        raise RemoteProtocolError(
            f"PDV on presentation context {value}, which was not accepted (PS3.8 §9.3.5.1)",
            source=2, reason=5)
    if fault == FAULT_CONTEXT_CHANGED:
        raise RemoteProtocolError(
            f"presentation context changed to {value} within a message (PS3.8 Annex E)",
            source=2, reason=5)
    if fault == FAULT_COMMAND_EXPECTED:
        raise RemoteProtocolError(
            "a dataset fragment where a command was due (PS3.8 Annex E)", source=2, reason=5)
    if fault == FAULT_DATASET_EXPECTED:
        raise RemoteProtocolError(
            "a command fragment within a dataset (PS3.8 Annex E)", source=2, reason=5)
    if fault == FAULT_COMMAND_LENGTH:
        raise RemoteProtocolError(
            f"a command set of more than {COMMAND_LENGTH_MAX} bytes", source=0, reason=0)
    if fault == FAULT_FRAGMENT_FLOOR:
        raise RemoteProtocolError(
            f"fragments of less than {FLOOR_LENGTH} bytes on average", source=0, reason=0)
    raise RemoteProtocolError(
        f"a fragment of odd length {value} (PS3.8 Annex E)", source=2, reason=6)


@cython.final
cdef class PduReader:
    """Turns the bytes of one association into events; owned by that association's reading task.

    Bytes are put in by net's receive call or by `feed`; `next` then returns NEED_DATA, PDU (`pdu_type`,
    `pdu_body`), COMMAND (`context_id`, `command`) or DATA (`data_length`, `data_last` and the methods
    that look at the slices). After COMMAND the owner calls `expect_dataset`. Slices are valid until the
    next call of `next`. A broken stream raises RemoteProtocolError; the reader is then of no more use.
    """

    def __cinit__(self, uint32_t pdu_length_max=0, *, bint strict=False):
        self.slab = NULL
        self.body = NULL
        self.command_buffer = NULL
        self.slices = NULL
        self.pdu_length_max = pdu_length_max
        self.strict = strict
        self.phase = PHASE_PDU_HEADER
        self.message = MESSAGE_NONE
        memset(self.accepted, 0, sizeof(self.accepted))

    def __dealloc__(self):
        if self.slab != NULL:
            return_slab(self.slab)
        free(self.body)
        free(self.command_buffer)
        free(self.slices)

    # -- filling ------------------------------------------------------------------------------

    cdef bint reserve(self) except -1:
        """Makes room behind `tail` where that is possible; False while the slab is full."""
        if self.slab == NULL:
            self.slab = borrow_slab()
            if self.slab == NULL:
                raise MemoryError("no memory for a receive slab")
            self.head = self.tail = 0
        elif self.head == self.tail:
            if not self.slices_out:
                self.head = self.tail = 0
        elif self.tail == SLAB_SIZE and self.head > 0 and not self.slices_out:
            memmove(self.slab, self.slab + self.head, <size_t>(self.tail - self.head))
            self.tail -= self.head
            self.head = 0
        return self.tail < SLAB_SIZE

    def feed(self, const uint8_t[::1] data not None):
        """Copies `data` in, as a test or a transport without a descriptor does; returns bytes taken."""
        cdef Py_ssize_t taken = data.shape[0]
        if taken == 0 or not self.reserve():
            return 0
        if taken > SLAB_SIZE - self.tail:
            taken = SLAB_SIZE - self.tail
        memcpy(self.slab + self.tail, &data[0], <size_t>taken)
        self.tail += taken
        return taken

    def park(self):
        """Gives an empty slab back to the pool: an idle association holds no buffer."""
        if self.slab != NULL and self.head == self.tail and not self.slices_out:
            return_slab(self.slab)
            self.slab = NULL
            self.head = self.tail = 0

    # -- what the upper layer says --------------------------------------------------------------

    def accept_p_data(self, bint accepted):
        """Whether the state table lets P-DATA-TF in (Sta6, Sta7)."""
        self.p_data_accepted = accepted

    def set_contexts(self, context_ids):
        """The accepted presentation context IDs."""
        memset(self.accepted, 0, sizeof(self.accepted))
        for context_id in context_ids:
            self.accepted[<uint8_t>context_id] = 1

    def expect_dataset(self, bint expected, bint skip=False):
        """After COMMAND: whether its CommandDataSetType promises a dataset. skip: nobody looks at it."""
        if self.message != MESSAGE_UNDECIDED:
            raise LocalProtocolError("expect_dataset() without a command before it")
        self.message = MESSAGE_DATASET if expected else MESSAGE_NONE
        self.skipping = skip

    def skip_dataset(self):
        """Nobody looks at the rest of the current dataset: its bytes are counted only."""
        self.skipping = True

    # -- what the owner reads ---------------------------------------------------------------------

    @property
    def buffered(self):
        """Bytes that arrived and were not looked at yet."""
        return self.tail - self.head

    @property
    def message_incomplete(self):
        """True within a message: after its first byte, before its last."""
        return self.message != MESSAGE_NONE or self.phase == PHASE_PDV_BODY

    @property
    def pdu_type(self):
        return self.body_type

    @property
    def pdu_body(self):
        return PyBytes_FromStringAndSize(<char*>self.body, self.body_length)

    @property
    def context_id(self):
        return self.message_context

    @property
    def command(self):
        return PyBytes_FromStringAndSize(<char*>self.command_buffer, self.command_length)

    @property
    def data_length(self):
        return self.slices_length

    @property
    def data_last(self):
        return self.slices_last

    def copy_data(self):
        """The slices as one bytes object; nothing of what is skipped."""
        cdef Py_ssize_t length = 0
        cdef bytes result
        cdef char* target
        cdef int i
        for i in range(self.slice_count):
            length += self.slices[i].length
        result = PyBytes_FromStringAndSize(NULL, length)
        target = PyBytes_AS_STRING(result)
        for i in range(self.slice_count):
            memcpy(target, self.slices[i].data, <size_t>self.slices[i].length)
            target += self.slices[i].length
        return result

    def update(self, consume):
        """Calls `consume` with a view of each slice; the view is released when it returns."""
        cdef int i
        for i in range(self.slice_count):
            view = PyMemoryView_FromMemory(
                <char*>self.slices[i].data, self.slices[i].length, PyBUF_READ)
            try:
                consume(view)
            finally:
                view.release()

    # -- the machine --------------------------------------------------------------------------------

    def next(self):
        """The next event; NEED_DATA when what arrived is used up."""
        cdef int code
        self.slices_out = False
        self.slice_count = 0
        self.slices_length = 0
        self.slices_last = False
        if self.message == MESSAGE_UNDECIDED:
            raise LocalProtocolError("next() before expect_dataset()")
        if self.deferred != FAULT_NONE:
            raise_fault(self.deferred, self.fault_value)
        code = self.advance()
        if code < 0:
            self.deferred = code
            if self.slices_length == 0:
                raise_fault(code, self.fault_value)
            code = DATA_EVENT       # what came before the fault goes first, however it was cut
        self.slices_out = self.slice_count > 0
        return code

    cdef int advance(self) except? -99:
        cdef int code = 0
        while True:
            if self.phase == PHASE_PDU_HEADER:
                if self.tail - self.head < PDU_HEADER_SIZE:
                    break
                if self.slices_length > 0 and self.slab[self.head] != 4:
                    break               # what came before another PDU goes first, however it was cut
                code = self.read_pdu_header()
            elif self.phase == PHASE_PDV_HEADER:
                if self.tail - self.head < PDV_HEADER_SIZE:
                    break
                code = self.read_pdv_header()
            elif self.phase == PHASE_PDU_BODY:
                code = self.read_body()
                if code == 0 and self.phase == PHASE_PDU_BODY:
                    break
            else:
                code = self.read_fragment()
                if code == 0 and self.phase == PHASE_PDV_BODY:
                    break
            if code != 0:
                return code
        if self.slices_length > 0:
            return DATA_EVENT
        return 0

    cdef int read_pdu_header(self) noexcept nogil:
        cdef const uint8_t* p = self.slab + self.head
        cdef uint8_t pdu_type = p[0]
        cdef uint32_t length = load_be32(p + 2)
        self.fault_value = length
        if pdu_type == 4:
            if not self.p_data_accepted:
                return FAULT_P_DATA_UNEXPECTED
            if length < PDV_HEADER_SIZE:
                return FAULT_P_DATA_LENGTH
            if self.pdu_length_max != 0 and length > self.pdu_length_max:
                if self.strict or length - self.pdu_length_max > P_DATA_SLACK:
                    return FAULT_P_DATA_LENGTH
                self.oversized_pdus += 1
            self.pdus_received += 1
            self.pdu_remaining = length
            self.head += PDU_HEADER_SIZE
            self.phase = PHASE_PDV_HEADER
            return FAULT_NONE
        if pdu_type == 1 or pdu_type == 2:
            if length > ASSOCIATE_LENGTH_MAX:
                return FAULT_ASSOCIATE_LENGTH
        elif pdu_type == 7:
            if length != 4:
                length = 0          # an A-ABORT all the same: it is taken at once, its body is not read
        elif pdu_type >= 1 and pdu_type <= 7:
            if length != 4:
                return FAULT_FIXED_LENGTH
        else:
            self.fault_value = self.body_type = pdu_type
            return FAULT_UNKNOWN_PDU
        self.pdus_received += 1
        self.body_type = pdu_type
        self.body_length = 0
        self.pdu_remaining = length
        self.head += PDU_HEADER_SIZE
        self.phase = PHASE_PDU_BODY
        return FAULT_NONE

    cdef int read_pdv_header(self) noexcept nogil:
        cdef const uint8_t* p = self.slab + self.head
        cdef uint32_t length = load_be32(p)
        cdef uint8_t context_id = p[4]
        cdef bint is_command = p[5] & 1
        self.fault_value = length
        if length < 2 or self.pdu_remaining < 4 or length > self.pdu_remaining - 4:
            return FAULT_PDV_LENGTH
        self.fault_value = context_id
        if not self.accepted[context_id]:
            return FAULT_CONTEXT
        if self.message == MESSAGE_NONE:
            if not is_command:
                return FAULT_COMMAND_EXPECTED
            self.message = MESSAGE_COMMAND
            self.message_context = context_id
            self.command_length = 0
        elif context_id != self.message_context:
            return FAULT_CONTEXT_CHANGED
        elif self.message == MESSAGE_COMMAND and not is_command:
            return FAULT_COMMAND_EXPECTED
        elif self.message == MESSAGE_DATASET and is_command:
            return FAULT_DATASET_EXPECTED
        self.pdv_last = (p[5] & 2) != 0
        self.pdv_remaining = length - 2
        self.pdu_remaining -= length + 4
        if self.pdu_remaining != 0 and self.pdu_remaining < PDV_HEADER_SIZE:
            self.fault_value = self.pdu_remaining
            return FAULT_PDV_LENGTH
        if self.pdv_remaining & 1:
            self.fault_value = self.pdv_remaining
            if self.strict:
                return FAULT_FRAGMENT_ODD
            self.odd_fragments += 1
        if not self.pdv_last:
            self.floor_count += 1
            self.floor_bytes += self.pdv_remaining
            if self.floor_count == FLOOR_WINDOW:
                if self.floor_bytes < <int64_t>FLOOR_WINDOW * FLOOR_LENGTH:
                    return FAULT_FRAGMENT_FLOOR
                self.floor_count = 0
                self.floor_bytes = 0
        self.head += PDV_HEADER_SIZE
        self.phase = PHASE_PDV_BODY
        return FAULT_NONE

    cdef int read_body(self) except? -99:
        """Gathers a PDU other than P-DATA-TF; memory grows with what arrives, never with what is said."""
        cdef Py_ssize_t available = self.tail - self.head
        cdef Py_ssize_t capacity
        cdef uint8_t* grown
        if available > <Py_ssize_t>self.pdu_remaining:
            available = <Py_ssize_t>self.pdu_remaining
        if self.body_length + available > self.body_capacity:
            capacity = max(self.body_length + available, 2 * self.body_capacity, 64)
            grown = <uint8_t*>realloc(self.body, <size_t>capacity)
            if grown == NULL:
                raise MemoryError("no memory for a PDU")
            self.body = grown
            self.body_capacity = capacity
        if available > 0:
            memcpy(self.body + self.body_length, self.slab + self.head, <size_t>available)
        self.body_length += available
        self.head += available
        self.pdu_remaining -= <uint32_t>available
        if self.pdu_remaining == 0:
            self.phase = PHASE_PDU_HEADER
            return PDU_EVENT
        return 0

    cdef int read_fragment(self) except? -99:
        cdef Py_ssize_t available = self.tail - self.head
        cdef Py_ssize_t capacity
        cdef uint8_t* grown
        if available > <Py_ssize_t>self.pdv_remaining:
            available = <Py_ssize_t>self.pdv_remaining
        if self.message == MESSAGE_COMMAND:
            if self.command_length + available > COMMAND_LENGTH_MAX:
                return FAULT_COMMAND_LENGTH
            if self.command_length + available > self.command_capacity:
                capacity = max(self.command_length + available, 2 * self.command_capacity, 512)
                grown = <uint8_t*>realloc(self.command_buffer, <size_t>capacity)
                if grown == NULL:
                    raise MemoryError("no memory for a command set")
                self.command_buffer = grown
                self.command_capacity = capacity
            if available > 0:
                memcpy(self.command_buffer + self.command_length, self.slab + self.head,
                       <size_t>available)
            self.command_length += available
        elif available > 0:
            if not self.skipping:
                if self.slices == NULL:
                    self.slices = <Slice*>malloc(SLICES_MAX * sizeof(Slice))
                    if self.slices == NULL:
                        raise MemoryError("no memory for slices")
                if self.slice_count == SLICES_MAX:
                    return DATA_EVENT
                self.slices[self.slice_count].data = self.slab + self.head
                self.slices[self.slice_count].length = available
                self.slice_count += 1
            self.slices_length += available
            self.dataset_bytes_received += available
        self.head += available
        self.pdv_remaining -= <uint32_t>available
        if self.pdv_remaining != 0:
            return 0
        self.phase = PHASE_PDV_HEADER if self.pdu_remaining != 0 else PHASE_PDU_HEADER
        if not self.pdv_last:
            return 0
        if self.message == MESSAGE_COMMAND:
            self.message = MESSAGE_UNDECIDED
            return COMMAND_EVENT
        self.message = MESSAGE_NONE
        self.slices_last = True
        return DATA_EVENT
