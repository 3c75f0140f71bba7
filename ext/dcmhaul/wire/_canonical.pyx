# cython: language_level=3, binding=True, embedsignature=True, boundscheck=False, wraparound=False, cdivision=True
# cython: auto_pickle=False, autotestdict=False
# In place of bounds checks: `run` reads the fed bytes only below `length`, `held` takes at most the
# 12 bytes that `header_size` asks for, `push` compares `nesting` before it writes to `places`, and
# nothing is written to an Output before `reserve`.
"""The content of an encoded dataset as bytes that do not depend on how it was encoded (PS3.5 §7).

Lengths, group lengths, VRs, the byte order, the padding of text and offset tables leave no trace in
them. Must not hold a value, and must not know what an element means beyond the given dictionary.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from dcmhaul.wire._elements cimport is_known_vr, is_long

from dcmhaul.wire._elements import ElementFault

cdef uint32_t UNDEFINED = 0xFFFFFFFFU

# The last byte of each record; read from the end, a stream can be taken apart in one way only.
cdef uint8_t RECORD_VALUE = b"V"
cdef uint8_t RECORD_SEQUENCE = b"S"
cdef uint8_t RECORD_ITEM = b"I"
cdef uint8_t RECORD_ITEM_END = b"i"
cdef uint8_t RECORD_SEQUENCE_END = b"s"
cdef uint8_t RECORD_FRAGMENT = b"f"
cdef uint8_t RECORD_FRAGMENTS_END = b"F"

# Big endian: bytes that belong together, by VR (PS3.5 §7.3); all others are bytes one by one.
cdef dict UNITS = {
    b"US": 2, b"SS": 2, b"OW": 2, b"AT": 2,
    b"UL": 4, b"SL": 4, b"FL": 4, b"OF": 4, b"OL": 4,
    b"FD": 8, b"OD": 8, b"OV": 8, b"SV": 8, b"UV": 8,
}


cdef inline uint32_t load16(const uint8_t* p, bint big) noexcept:
    return (<uint32_t>p[0] << 8) | p[1] if big else (<uint32_t>p[1] << 8) | p[0]


cdef inline uint32_t load32(const uint8_t* p, bint big) noexcept:
    if big:
        return (load16(p, True) << 16) | load16(p + 2, True)
    return (load16(p + 2, False) << 16) | load16(p, False)


cdef inline uint32_t load_tag(const uint8_t* p, bint big) noexcept:
    return (load16(p, big) << 16) | load16(p + 2, big)


cdef inline bint two_capitals(const uint8_t* vr) noexcept:
    return 0x41 <= vr[0] <= 0x5A and 0x41 <= vr[1] <= 0x5A


@cython.final
cdef class ElementClasses:
    """What is known of tags: 1 binary, 2 text whose trailing padding is none of its content, 3 sequence.

    classes: by tag. Tags of the repeating groups 50xx and 60xx stand under 5000 and 6000.
    """

    def __cinit__(self, classes):
        cdef Py_ssize_t i = 0
        ordered = sorted(classes.items())
        self.count = len(ordered)
        self.tags = <uint32_t*>malloc(<size_t>(self.count + 1) * sizeof(uint32_t))
        self.classes = <uint8_t*>malloc(<size_t>(self.count + 1))
        if self.tags == NULL or self.classes == NULL:
            raise MemoryError
        for tag, known in ordered:
            if not CLASS_BINARY <= known <= CLASS_SEQUENCE:
                raise ValueError(f"a class is 1, 2 or 3, not {known}")
            self.tags[i] = tag
            self.classes[i] = known
            i += 1

    def __dealloc__(self):
        free(self.tags)
        free(self.classes)

    cdef int find(self, uint32_t tag) noexcept:
        cdef Py_ssize_t low = 0
        cdef Py_ssize_t high = self.count
        cdef Py_ssize_t middle
        cdef uint32_t group = tag >> 16
        if group & 1:
            # A private creator (PS3.5 §7.8.1) is text; of its elements nothing is known.
            return CLASS_TEXT if 0x10 <= (tag & 0xFFFF) <= 0xFF else CLASS_UNKNOWN
        if (group & 0xFF00) in (0x5000, 0x6000):
            tag &= 0xFF00FFFFU
        while low < high:
            middle = (low + high) >> 1
            if self.tags[middle] < tag:
                low = middle + 1
            else:
                high = middle
        return self.classes[low] if low < self.count and self.tags[low] == tag else CLASS_UNKNOWN


@cython.final
cdef class Canonicaliser:
    """Turns an encoded dataset, fed in pieces of any size, into its canonical bytes; one owner.

    dictionary: classes of tags. explicit: the form, None where the first VR decides. big_endian: the
    byte order. apart: tags at depth 0 whose bytes go to a stream of their own, `take_apart`.
    The stream does not depend on how the input was cut. Any bytes give a result or ElementFault.
    """

    def __cinit__(self, ElementClasses dictionary not None, explicit=None, *, bint big_endian=False,
                  apart=()):
        self.dictionary = dictionary
        self.apart = frozenset(apart)
        self.places[0].kind = PLACE_DATASET
        self.places[0].big_endian = big_endian
        self.places[0].end = -1
        if explicit is None:
            self.places[0].form = PLACE_DETECT
        else:
            self.places[0].form = PLACE_EXPLICIT if explicit else PLACE_IMPLICIT
        self.unit = 1

    def __dealloc__(self):
        free(self.main.data)
        free(self.side.data)

    def feed(self, data):
        """The canonical bytes that follow from the next bytes of the dataset."""
        self.take(data)
        return self.drain(&self.main)

    def feed_elements(self, data):
        """The same in pieces, as `(tag at depth 0, bytes)`, also those of `apart`."""
        cdef list cuts = []
        self.cuts = cuts
        self.cut_from = 0
        try:
            self.take(data)
            self.cut()
        finally:
            self.cuts = None
        # What is kept back for the next feed moves to the front.
        self.drain(&self.main)
        return cuts

    def take_apart(self):
        """The canonical bytes of `apart` since the last call of this."""
        return self.drain(&self.side)

    def finish(self):
        """Says that no byte follows; ElementFault where something is unfinished."""
        self.refuse()
        self.close_ended()
        if self.phase != PHASE_HEADER or self.held_length or self.top > 0:
            self.fail("the data ends within an element or a sequence", self.position)

    def take(self, data):
        cdef Py_buffer view
        self.refuse()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.run(<const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def refuse(self):
        if self.fault is not None:
            raise ElementFault(self.fault_at, self.fault)

    cdef int fail(self, str text, int64_t at) except -1:
        self.fault = text
        self.fault_at = at
        raise ElementFault(at, text)

    # -- output ----------------------------------------------------------------------------------

    cdef Output* output(self) noexcept:
        return &self.side if self.is_side else &self.main

    cdef int reserve(self, Output* out, Py_ssize_t more) except -1:
        cdef Py_ssize_t size
        cdef uint8_t* grown
        if out.used + more <= out.size:
            return 0
        size = max(2 * out.size, out.used + more, 1024)
        grown = <uint8_t*>realloc(out.data, <size_t>size)
        if grown == NULL:
            raise MemoryError
        out.data = grown
        out.size = size
        return 0

    cdef int put(self, const uint8_t* data, Py_ssize_t length) except -1:
        cdef Output* out = self.output()
        self.reserve(out, length)
        memcpy(out.data + out.used, data, <size_t>length)
        out.used += length
        self.written += length
        return 0

    cdef int record(self, uint8_t kind, uint32_t tag, int64_t length) except -1:
        cdef Output* out = self.output()
        cdef uint8_t* p
        cdef int i
        self.reserve(out, TRAILER_SIZE)
        p = out.data + out.used
        for i in range(8):
            p[i] = <uint8_t>((length >> (8 * i)) & 0xFF)
        for i in range(4):
            p[8 + i] = <uint8_t>((tag >> (8 * i)) & 0xFF)
        p[12] = kind
        out.used += TRAILER_SIZE
        return 0

    cdef int mark(self, uint8_t kind) except -1:
        cdef Output* out = self.output()
        self.reserve(out, 1)
        out.data[out.used] = kind
        out.used += 1
        return 0

    cdef int cut(self) except -1:
        """Ends the piece of the element at depth 0 that was walked until here."""
        cdef Py_ssize_t until = self.main.used
        if self.phase == PHASE_VALUE and self.is_text and self.padding <= PADDING_MAX:
            until -= self.padding
        if until > self.cut_from:
            piece = PyBytes_FromStringAndSize(
                <const char*>self.main.data + self.cut_from, until - self.cut_from)
            self.cuts.append((self.outer, piece))
            self.cut_from = until
        return 0

    cdef bytes drain(self, Output* out):
        """What is settled; the padding of a text that goes on stays until its end is known."""
        cdef Py_ssize_t kept = 0
        cdef bytes settled
        if (self.phase == PHASE_VALUE and self.is_text and self.padding <= PADDING_MAX
                and out == self.output()):
            kept = self.padding
        settled = PyBytes_FromStringAndSize(<const char*>out.data, out.used - kept)
        if kept:
            memmove(out.data, out.data + out.used - kept, <size_t>kept)
        out.used = kept
        return settled

    # -- the walk --------------------------------------------------------------------------------

    cdef int run(self, const uint8_t* data, Py_ssize_t length) except -1:
        cdef Py_ssize_t i = 0
        cdef Py_ssize_t take
        cdef int size
        while True:
            if self.phase == PHASE_VALUE:
                take = length - i
                if take > self.remaining:
                    take = <Py_ssize_t>self.remaining
                if take > 0:
                    self.take_value(data + i, take)
                    i += take
                if self.remaining > 0:
                    return 0
                self.end_value()
            elif self.phase == PHASE_HEADER and self.held_length == 0:
                self.close_ended()
            size = self.header_size() if self.phase == PHASE_HEADER else 8
            while self.held_length < size:
                if i == length:
                    return 0
                self.held[self.held_length] = data[i]
                self.held_length += 1
                i += 1
                if self.held_length == 8 and self.phase == PHASE_HEADER:
                    size = self.header_size()
            if self.phase == PHASE_PEEK:
                self.decide()
            else:
                self.take_header(size)

    cdef int header_size(self) noexcept:
        """8 until as many bytes are held; then the size of the header; settles the form of its place."""
        cdef Place* place = &self.places[self.top]
        cdef const uint8_t* vr = self.held + 4
        if self.held_length < 8:
            return 8
        if place.kind >= PLACE_SEQUENCE or load_tag(self.held, place.big_endian) >> 16 == 0xFFFE:
            return 8
        if place.form == PLACE_DETECT:
            place.form = PLACE_EXPLICIT if two_capitals(vr) else PLACE_IMPLICIT
        elif place.form == PLACE_UNKNOWN:
            place.form = PLACE_EXPLICIT if is_known_vr(vr) else PLACE_IMPLICIT
        if place.form == PLACE_EXPLICIT and two_capitals(vr) and is_long(self.held):
            return 12
        return 8

    cdef int take_header(self, int size) except -1:
        cdef Place* place = &self.places[self.top]
        cdef bint big = place.big_endian
        cdef const uint8_t* p = self.held
        self.held_length = 0
        self.tag = load_tag(p, big)
        self.vr[0] = 0
        self.vr[1] = 0
        if size == 12:
            memcpy(self.vr, p + 4, 2)
            self.length = load32(p + 8, big)
        elif (place.kind < PLACE_SEQUENCE and place.form == PLACE_EXPLICIT
              and self.tag >> 16 != 0xFFFE and two_capitals(p + 4)):
            memcpy(self.vr, p + 4, 2)
            self.length = load16(p + 6, big)
        else:
            self.length = load32(p + 4, big)
        self.position += size
        if place.end >= 0:
            if self.position > place.end:
                self.fail("a header runs past the end of its item or sequence", self.position - size)
            if self.length != UNDEFINED and self.length > place.end - self.position:
                self.fail("a value runs past the end of its item or sequence", self.position - size)
        if place.kind >= PLACE_SEQUENCE:
            return self.take_in_sequence(place)
        if self.tag >> 16 == 0xFFFE:
            if place.kind != PLACE_ITEM or self.tag != 0xFFFEE00DU or place.end >= 0:
                self.fail("delimiter or item outside a sequence (PS3.5 §7.5)", self.position - size)
            return self.pop()
        return self.begin_element(place)

    cdef int take_in_sequence(self, Place* place) except -1:
        """An item or the delimiter, directly inside a sequence or an encapsulated value."""
        cdef bint fragments = place.kind == PLACE_FRAGMENTS
        cdef bint first = not place.items
        if self.tag == 0xFFFEE0DDU and place.end < 0:
            return self.pop()
        if self.tag != 0xFFFEE000U:
            self.fail("an item or a delimiter was expected in a sequence (PS3.5 §7.5)", self.position - 8)
        place.items = 1
        if fragments:
            if self.length == UNDEFINED:
                self.fail("fragment of undefined length (PS3.5 §A.4)", self.position - 8)
            # The first item is the offset table: it says lengths in other words.
            self.silent = first
            return self.begin_value(CLASS_BINARY, True)
        if first:
            self.record(RECORD_SEQUENCE, place.tag, 0)
        self.mark(RECORD_ITEM)
        return self.push(PLACE_ITEM, place.form, place.big_endian,
                         -1 if self.length == UNDEFINED else self.position + self.length)

    cdef int begin_element(self, Place* place) except -1:
        cdef int known = self.dictionary.find(self.tag)
        cdef int64_t end = self.position + self.length
        cdef bint un = self.vr[0] == 0x55 and self.vr[1] == 0x4E
        if self.top == 0:
            if self.cuts is not None:
                self.cut()
            self.outer = self.tag
            self.is_side = self.cuts is None and self.tag in self.apart
        # Group lengths (PS3.5 §7.2) and Data Set Trailing Padding (PS3.10 §7.2).
        self.silent = (self.tag & 0xFFFF) == 0 or self.tag == 0xFFFCFFFCU
        if self.length == UNDEFINED:
            return self.open_undefined(place, known)
        if self.vr[0] == 0x53 and self.vr[1] == 0x51:       # SQ
            return self.push(PLACE_SEQUENCE, place.form, place.big_endian, end)
        if known == CLASS_SEQUENCE and self.vr[0] == 0:
            return self.push(PLACE_SEQUENCE, place.form, place.big_endian, end)
        if known == CLASS_SEQUENCE and un:
            return self.push(PLACE_SEQUENCE, PLACE_UNKNOWN, 0, end)
        if known == CLASS_UNKNOWN and (un or self.vr[0] == 0) and self.length >= 8 and not self.silent:
            self.phase = PHASE_PEEK
            return 0
        return self.begin_value(known, False)

    cdef int open_undefined(self, Place* place, int known) except -1:
        """What an element of undefined length holds follows from its VR (PS3.5 §7.5, §A.4)."""
        if self.tag == 0x7FE00010 or self.vr[0] == 0x4F:    # OB, OW and their kin
            return self.push(PLACE_FRAGMENTS, place.form, place.big_endian, -1)
        if self.vr[0] == 0 or (self.vr[0] == 0x53 and self.vr[1] == 0x51):
            return self.push(PLACE_SEQUENCE, place.form, place.big_endian, -1)
        if self.vr[0] == 0x55 and self.vr[1] == 0x4E:       # UN: implicit little endian, PS3.5 §6.2.2
            return self.push(PLACE_SEQUENCE, PLACE_UNKNOWN, 0, -1)
        return self.fail("undefined length with a VR that cannot have it (PS3.5 §7.1.3)",
                         self.position - 8)

    cdef int push(self, uint8_t kind, uint8_t form, uint8_t big_endian, int64_t end) except -1:
        cdef Place* place
        if kind >= PLACE_SEQUENCE:
            if self.nesting >= NESTING_MAX:
                self.fail("sequences are nested too deeply", self.position)
            self.nesting += 1
        self.top += 1
        place = &self.places[self.top]
        memset(place, 0, sizeof(Place))
        place.kind = kind
        place.form = form
        place.big_endian = big_endian
        place.end = end
        place.tag = self.tag
        self.phase = PHASE_HEADER
        return 0

    cdef int pop(self) except -1:
        cdef Place* place = &self.places[self.top]
        if place.kind == PLACE_ITEM:
            self.mark(RECORD_ITEM_END)
        else:
            self.nesting -= 1
            if place.kind == PLACE_FRAGMENTS:
                self.record(RECORD_FRAGMENTS_END, place.tag, 0)
            elif place.items:
                self.mark(RECORD_SEQUENCE_END)
            else:
                # A sequence without items is no more than an empty value, which may have any VR.
                self.record(RECORD_VALUE, place.tag, 0)
        self.top -= 1
        self.phase = PHASE_HEADER
        return 0

    cdef int close_ended(self) except -1:
        """Closes the items and sequences whose defined length is used up."""
        while self.top > 0 and self.places[self.top].end == self.position:
            self.pop()
        return 0

    # -- values ----------------------------------------------------------------------------------

    cdef int begin_value(self, int known, bint fragment) except -1:
        cdef Place* place = &self.places[self.top]
        self.phase = PHASE_VALUE
        self.remaining = self.length
        self.written = 0
        self.padding = 0
        self.unit = 1
        self.unit_have = 0
        self.is_text = known == CLASS_TEXT and not self.silent
        if place.big_endian and not fragment and not self.is_text:
            self.unit = UNITS.get(self.vr[:2], 1)
        return 0

    cdef int decide(self) except -1:
        """The first 8 bytes of a value of which nothing is known: a sequence begins with an item."""
        cdef Place* place = &self.places[self.top]
        cdef uint32_t length = load32(self.held + 4, False)
        cdef bint un = self.vr[0] == 0x55
        if load_tag(self.held, False) == 0xFFFEE000U and (
                length == UNDEFINED or length <= self.length - 8):
            # What is held is the header of the first item.
            return self.push(PLACE_SEQUENCE, PLACE_UNKNOWN if un else place.form,
                             0 if un else place.big_endian, self.position + self.length)
        self.begin_value(CLASS_UNKNOWN, False)
        self.held_length = 0
        return self.take_value(self.held, 8)

    cdef int take_value(self, const uint8_t* data, Py_ssize_t length) except -1:
        cdef Py_ssize_t run = 0
        self.remaining -= length
        self.position += length
        if self.silent:
            return 0
        if self.unit > 1:
            return self.swap(data, length)
        self.put(data, length)
        if self.is_text:
            while run < length and data[length - 1 - run] in (0x00, 0x20):
                run += 1
            self.padding = run + (self.padding if run == length else 0)
        return 0

    cdef int swap(self, const uint8_t* data, Py_ssize_t length) except -1:
        """Numbers of `unit` bytes in little endian, however they are cut."""
        cdef Py_ssize_t i
        for i in range(length):
            self.unit_bytes[self.unit - 1 - self.unit_have] = data[i]
            self.unit_have += 1
            if self.unit_have == self.unit:
                self.unit_have = 0
                self.put(self.unit_bytes, self.unit)
        return 0

    cdef int end_value(self) except -1:
        cdef Output* out = self.output()
        cdef int i
        for i in range(self.unit_have):                     # a broken number stays as it is
            self.put(&self.unit_bytes[self.unit - 1 - i], 1)
        self.unit_have = 0
        if self.is_text and self.padding <= PADDING_MAX:
            out.used -= self.padding
            self.written -= self.padding
        self.phase = PHASE_HEADER
        if not self.silent:
            if self.places[self.top].kind == PLACE_FRAGMENTS:
                self.record(RECORD_FRAGMENT, self.tag, self.written)
            else:
                self.record(RECORD_VALUE, self.tag, self.written)
        self.silent = False
        self.close_ended()
        return 0
