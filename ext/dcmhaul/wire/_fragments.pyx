# cython: language_level=3, binding=True, embedsignature=True, boundscheck=False, wraparound=False, cdivision=True
# In place of bounds checks: `fill` stops while two segments are still free, and `push` grows `items` first.
"""Cuts messages into P-DATA-TF PDUs (PS3.8 §9.3.5) without touching their bytes.

The plan that `fill` writes is an array of memory and file segments; net's run_plan executes it. One PDV a
PDU, command and dataset in separate PDUs, every fragment but the last of full and even length.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdlib cimport free, realloc

from dcmhaul.wire.byteorder cimport store_be32


cdef class _Held:
    """An exported buffer: while it lives, nobody resizes or frees the memory behind it."""

    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, data):
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


@cython.final
cdef class SendQueue:
    """What waits to be sent on one association, in order; owned by whoever holds its send lock.

    `pdu_length_max` is the largest length of a P-DATA-TF (PS3.8 §D.1), 0 for PDU_LENGTH_DEFAULT; a length
    that leaves no room for two bytes of a fragment is a ValueError.
    """

    def __cinit__(self, uint32_t pdu_length_max=0):
        self.items = NULL
        self.owners = []
        self.limit(pdu_length_max)

    def __dealloc__(self):
        free(self.items)

    def limit(self, uint32_t pdu_length_max):
        """Sets the largest PDU length for what is cut from now on."""
        if pdu_length_max == 0:
            pdu_length_max = PDU_LENGTH_DEFAULT
        if pdu_length_max < PDV_OVERHEAD + 2:
            raise ValueError(f"a maximum length of {pdu_length_max} cannot carry a fragment")
        self.fragment_max = (pdu_length_max - PDV_OVERHEAD) & ~<uint32_t>1

    @property
    def fragment_size_max(self):
        """Bytes of a full fragment."""
        return self.fragment_max

    cdef int push(self, ItemKind kind, const uint8_t* data, int fd, int64_t offset, int64_t length,
                  uint8_t context_id, uint8_t control, bint last, object owner) except -1:
        cdef int capacity
        cdef Item* grown
        cdef Item* item
        if self.item_count == self.item_capacity:
            capacity = max(16, 2 * self.item_capacity)
            grown = <Item*>realloc(self.items, <size_t>capacity * sizeof(Item))
            if grown == NULL:
                raise MemoryError("no memory for the send queue")
            self.items = grown
            self.item_capacity = capacity
        item = &self.items[self.item_count]
        item.kind = kind
        item.data = data
        item.fd = fd
        item.offset = offset
        item.remaining = length
        item.context_id = context_id
        item.control = control
        item.last = last
        self.owners.append(owner)
        self.item_count += 1
        self.pending += length
        return 0

    def add_bytes(self, bytes pdus not None):
        """Appends PDUs that are encoded already."""
        self.push(ITEM_BYTES, pdus, -1, 0, len(pdus), 0, 0, True, pdus)

    def add_command(self, uint8_t context_id, bytes command not None):
        """Appends a whole command set."""
        self.push(ITEM_MEMORY, command, -1, 0, len(command), context_id, 1, True, command)

    def add_data(self, uint8_t context_id, data, bint last):
        """Appends dataset bytes; where `last` is false their number must be even."""
        cdef _Held held = _Held(data)
        if not last and held.view.len % 2 != 0:
            raise ValueError("a fragment that does not end a dataset has an even length")
        self.push(ITEM_MEMORY, <const uint8_t*>held.view.buf, -1, 0, held.view.len, context_id, 0, last,
                  held)

    def add_file(self, uint8_t context_id, int fd, int64_t offset, int64_t length, bint last, owner):
        """Appends `length` bytes of the file `fd` from `offset`; `owner` is kept until they are sent."""
        if offset < 0 or length < 0 or (not last and length % 2 != 0):
            raise ValueError("a file range has an offset and a length, even unless it is the last")
        self.push(ITEM_FILE, NULL, fd, offset, length, context_id, 0, last, owner)

    def cut(self):
        """Forgets all but the rest of the PDU that is half out, so that an A-ABORT can follow it.

        What is left of it in a file is read now: the file may be closed, and its descriptor be another's,
        before that is sent. False where nothing is half out: the queue is then empty.
        """
        cdef int end = self.segment_head
        cdef int i
        while end < self.segment_count and not self.segments[end].boundary:
            end += 1
        if end == self.segment_head:
            self.clear()
            return False
        self.segment_count = end
        self.item_head = self.item_count
        for i in range(self.segment_head, end):
            if self.segments[i].data == NULL:
                self.hold(&self.segments[i])
        return True

    cdef int hold(self, Segment* segment) except -1:
        """Turns the rest of a file segment into memory.

        One that cannot be read, or is too long for that, can never be sent.
        """
        import os
        rest = b""
        if segment.length <= REST_LENGTH_MAX:
            try:
                rest = os.pread(segment.fd, segment.length, segment.offset)
            except OSError:
                pass
        segment.fd = -1
        if len(rest) == segment.length:
            self.rest = rest
            segment.data = <const uint8_t*>PyBytes_AS_STRING(rest)
        return 0

    def clear(self):
        """Forgets everything: the association is lost."""
        self.item_count = self.item_head = 0
        self.segment_head = self.segment_count = 0
        self.pending = 0
        self.owners = []
        self.rest = None

    cdef int fill(self) noexcept nogil:
        """Writes the next segments once all earlier ones are sent; returns their number."""
        cdef Item* item
        cdef Segment* segment
        cdef uint8_t* header
        cdef int64_t length
        cdef bint last
        self.segment_head = self.segment_count = 0
        while self.item_head < self.item_count and self.segment_count + 2 <= SEGMENTS_MAX:
            item = &self.items[self.item_head]
            if item.kind == ITEM_BYTES:
                segment = &self.segments[self.segment_count]
                segment.data = item.data
                segment.length = item.remaining
                segment.boundary = True
                self.segment_count += 1
                self.item_head += 1
                self.pdus_sent += 1
                continue
            length = item.remaining
            if length > self.fragment_max:
                length = self.fragment_max
            last = item.last and length == item.remaining
            if length == 0 and not last:
                self.item_head += 1
                continue
            header = &self.headers[self.segment_count * P_DATA_HEADER_SIZE]
            header[0] = 4
            header[1] = 0
            store_be32(header + 2, <uint32_t>(length + PDV_OVERHEAD))
            store_be32(header + 6, <uint32_t>(length + 2))
            header[10] = item.context_id
            header[11] = item.control | (2 if last else 0)
            segment = &self.segments[self.segment_count]
            segment.data = header
            segment.length = P_DATA_HEADER_SIZE
            segment.boundary = True
            self.segment_count += 1
            if length > 0:
                segment = &self.segments[self.segment_count]
                segment.data = item.data
                segment.fd = item.fd
                segment.offset = item.offset
                segment.length = length
                segment.boundary = False
                self.segment_count += 1
            if item.kind == ITEM_FILE:
                item.offset += length
            else:
                item.data += length
            item.remaining -= length
            self.pdus_sent += 1
            if not item.control:
                self.dataset_bytes_sent += length
            if item.remaining == 0:
                self.item_head += 1
        return self.segment_count

    cdef void release(self):
        """Drops the owners of items that are wholly sent; called with the GIL, after run_plan."""
        cdef int i
        if self.segment_head < self.segment_count or self.item_head == 0:
            return
        if self.item_head == self.item_count:
            self.owners.clear()
            self.item_count = self.item_head = 0
            self.pending = 0
            return
        if self.item_head >= 16:
            del self.owners[:self.item_head]
            for i in range(self.item_head, self.item_count):
                self.items[i - self.item_head] = self.items[i]
            self.item_count -= self.item_head
            self.item_head = 0

    def drain(self):
        """The bytes of the whole queue, files read; for tests and transports without a descriptor."""
        import os
        result = bytearray()
        while self.segment_head < self.segment_count or self.fill() > 0:
            while self.segment_head < self.segment_count:
                segment = self.segments[self.segment_head]
                if segment.data != NULL:
                    result += (<const char*>segment.data)[:segment.length]
                else:
                    result += os.pread(segment.fd, segment.length, segment.offset)
                self.segment_head += 1
        self.release()
        return bytes(result)
