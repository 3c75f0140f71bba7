# cython: language_level=3, binding=True, embedsignature=True, boundscheck=False, wraparound=False, cdivision=True
# cython: auto_pickle=False, autotestdict=False
# In place of bounds checks: `advance` reads the fed bytes only below `length`, hands `take_header`
# a whole header, and `push` compares `depth` with `depth_max` before it writes to `levels`.
"""The walk over the element headers of a dataset (PS3.5 §7), values passed over, in any split.

Must not know what an element means, and must not look into a value.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from dcmhaul.wire.byteorder cimport load_be32


class ElementFault(ValueError):
    """Bytes that are no dataset; `offset` is where the header of the faulty element begins."""

    def __init__(self, offset, text):
        super().__init__(f"{text} at offset {offset}")
        self.offset = offset


cdef dict TEXTS = {
    FAULT_STRAY_DELIMITER: "delimiter or item outside a sequence (PS3.5 §7.5)",
    FAULT_ITEM_EXPECTED: "an item or a delimiter was expected in a sequence (PS3.5 §7.5)",
    FAULT_UNDEFINED_LENGTH: "undefined length with a VR that cannot have it (PS3.5 §7.1.3)",
    FAULT_FRAGMENT_LENGTH: "fragment of undefined length in an encapsulated value (PS3.5 §A.4)",
    FAULT_DEPTH: "sequences are nested too deeply",
    FAULT_ELEMENTS: "too many elements",
    FAULT_TRUNCATED: "the data ends within an element",
    FAULT_UNFINISHED: "the data ends within a sequence: its delimiter is missing (PS3.5 §7.5)",
}


cdef inline uint32_t load_le16(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[0] | (<uint32_t>p[1] << 8)


cdef inline uint32_t load_le32(const uint8_t* p) noexcept nogil:
    return load_le16(p) | (load_le16(p + 2) << 16)


cdef inline uint32_t load_tag(const uint8_t* p, bint big_endian) noexcept nogil:
    if big_endian:
        return load_be32(p)
    return (load_le16(p) << 16) | load_le16(p + 2)


# PS3.5 Tables 7.1-1 and 7.1-2: which explicit headers have a 32-bit length after two reserved
# bytes, and which a 16-bit length. Indexed by the two letters; VR_UNKNOWN is neither.
cdef uint8_t vr_lengths[26 * 26]
memset(vr_lengths, VR_UNKNOWN, sizeof(vr_lengths))
for _vr in b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split():
    vr_lengths[(_vr[0] - 0x41) * 26 + _vr[1] - 0x41] = VR_LONG
for _vr in b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split():
    vr_lengths[(_vr[0] - 0x41) * 26 + _vr[1] - 0x41] = VR_SHORT
del _vr


cdef inline bint two_capitals(const uint8_t* vr) noexcept nogil:
    return 0x41 <= vr[0] <= 0x5A and 0x41 <= vr[1] <= 0x5A


cdef inline uint8_t length_form(const uint8_t* vr) noexcept nogil:
    if not two_capitals(vr):
        return VR_UNKNOWN
    return vr_lengths[(vr[0] - 0x41) * 26 + vr[1] - 0x41]


cdef bint is_known_vr(const uint8_t* vr) noexcept nogil:
    return length_form(vr) != VR_UNKNOWN


cdef bint is_long(const uint8_t* header) noexcept nogil:
    """Whether the explicit header of 8 bytes at hand goes on for 4 more.

    An unknown VR has the long form (PS3.5 §7.1.2); encoders that gave it a 16-bit length are told
    by the two bytes that would be reserved.
    """
    cdef uint8_t form = length_form(header + 4)
    if form == VR_UNKNOWN:
        return header[6] == 0 and header[7] == 0
    return form == VR_LONG


cdef int header_size(Walk* walk, const uint8_t* header) noexcept nogil:
    """The size of the header that begins with these 8 bytes; settles the form of its level."""
    cdef Level* level = &walk.levels[walk.top]
    cdef const uint8_t* vr = header + 4
    if level.kind >= KIND_SEQUENCE or load_tag(header, level.big_endian) >> 16 == 0xFFFE:
        return SHORT_HEADER_SIZE
    if level.form == FORM_DETECT:
        level.form = FORM_EXPLICIT if two_capitals(vr) else FORM_IMPLICIT
    elif level.form == FORM_DETECT_KNOWN:
        level.form = FORM_IMPLICIT if length_form(vr) == VR_UNKNOWN else FORM_EXPLICIT
    # An element without a VR in an explicit dataset is met in the field: it has the implicit form.
    if level.form == FORM_EXPLICIT and two_capitals(vr) and is_long(header):
        return LONG_HEADER_SIZE
    return SHORT_HEADER_SIZE


cdef int push(Walk* walk, uint8_t kind, uint8_t form, uint8_t big_endian) noexcept nogil:
    cdef Level* level
    if kind >= KIND_SEQUENCE:
        if walk.depth >= walk.depth_max:
            return FAULT_DEPTH
        walk.depth += 1
    walk.top += 1
    level = &walk.levels[walk.top]
    level.kind = kind
    level.form = form
    level.big_endian = big_endian
    return FAULT_NONE


cdef void pop(Walk* walk) noexcept nogil:
    if walk.levels[walk.top].kind >= KIND_SEQUENCE:
        walk.depth -= 1
    walk.top -= 1


cdef int take_item(Walk* walk, Level* level) noexcept nogil:
    """A header directly inside a sequence or an encapsulated value."""
    if walk.tag == 0xFFFEE0DDU:
        pop(walk)
        return FAULT_NONE
    if walk.tag != 0xFFFEE000U:
        return FAULT_ITEM_EXPECTED
    if walk.length != 0xFFFFFFFFU:
        walk.remaining = walk.length
        return FAULT_NONE
    if level.kind == KIND_FRAGMENTS:
        return FAULT_FRAGMENT_LENGTH
    return push(walk, KIND_ITEM, level.form, level.big_endian)


cdef int open_undefined(Walk* walk, Level* level) noexcept nogil:
    """An element of undefined length: what it holds follows from its VR (PS3.5 §7.5, §A.4)."""
    if walk.tag == 0x7FE00010:
        return push(walk, KIND_FRAGMENTS, level.form, level.big_endian)
    if walk.vr[0] == 0:
        return push(walk, KIND_SEQUENCE, level.form, level.big_endian)
    if walk.vr[0] == 0x53 and walk.vr[1] == 0x51:       # SQ
        return push(walk, KIND_SEQUENCE, level.form, level.big_endian)
    if walk.vr[0] == 0x55 and walk.vr[1] == 0x4E:       # UN: implicit little endian, PS3.5 §6.2.2
        return push(walk, KIND_SEQUENCE, FORM_DETECT_KNOWN, 0)
    if walk.vr[0] == 0x4F:                              # OB, OW and their kin
        return push(walk, KIND_FRAGMENTS, level.form, level.big_endian)
    return FAULT_UNDEFINED_LENGTH


cdef bint is_wanted(Walk* walk, uint32_t tag) noexcept nogil:
    cdef int low = 0
    cdef int high = walk.wanted_count
    cdef int middle
    while low < high:
        middle = (low + high) >> 1
        if walk.wanted[middle] < tag:
            low = middle + 1
        else:
            high = middle
    return low < walk.wanted_count and walk.wanted[low] == tag


cdef int take_header(Walk* walk, const uint8_t* header) noexcept nogil:
    """Steps over one whole header: STEP_ELEMENT, STEP_STOPPED, FAULT_NONE or a fault."""
    cdef Level* level = &walk.levels[walk.top]
    cdef uint8_t big = level.big_endian
    cdef bint outermost = walk.top == 0
    cdef int size = header_size(walk, header)
    cdef int fault
    walk.header_size = size
    walk.tag = load_tag(header, big)
    walk.vr[0] = 0
    walk.vr[1] = 0
    if size == LONG_HEADER_SIZE:
        memcpy(walk.vr, header + 4, 2)
        walk.length = load_be32(header + 8) if big else load_le32(header + 8)
    elif (level.kind < KIND_SEQUENCE and level.form == FORM_EXPLICIT
          and walk.tag >> 16 != 0xFFFE and two_capitals(header + 4)):
        memcpy(walk.vr, header + 4, 2)
        walk.length = (load_be32(header + 4) & 0xFFFF) if big else load_le16(header + 6)
    else:
        walk.length = load_be32(header + 4) if big else load_le32(header + 4)
    if outermost and not walk.stop_below <= walk.tag <= walk.stop_above:
        return STEP_STOPPED
    walk.elements += 1
    if walk.elements_max and walk.elements > walk.elements_max:
        return FAULT_ELEMENTS
    if level.kind >= KIND_SEQUENCE:
        fault = take_item(walk, level)
    elif walk.tag >> 16 == 0xFFFE:
        if level.kind != KIND_ITEM or walk.tag != 0xFFFEE00DU:
            return FAULT_STRAY_DELIMITER
        pop(walk)
        fault = FAULT_NONE
    elif walk.length == 0xFFFFFFFFU:
        fault = open_undefined(walk, level)
    else:
        walk.remaining = walk.length
        fault = FAULT_NONE
    if fault != FAULT_NONE:
        return fault
    walk.position += size
    if outermost and (walk.report_all or is_wanted(walk, walk.tag)):
        return STEP_ELEMENT
    return FAULT_NONE


cdef int advance(Walk* walk, const uint8_t* data, Py_ssize_t length,
                 Py_ssize_t* used) noexcept nogil:
    """Walks on until all bytes are used, or a header is worth a word; `used` counts from `data`."""
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t take
    cdef int size
    cdef int step
    cdef const uint8_t* header
    while True:
        if walk.remaining > 0:
            take = length - i
            if take > walk.remaining:
                take = <Py_ssize_t>walk.remaining
            i += take
            walk.remaining -= take
            walk.position += take
            if walk.remaining > 0:
                break
        if walk.held_length == 0 and length - i >= LONG_HEADER_SIZE:
            header = data + i
            step = take_header(walk, header)
            if step != STEP_STOPPED and step >= 0:
                i += walk.header_size
        else:
            size = SHORT_HEADER_SIZE
            if walk.held_length >= SHORT_HEADER_SIZE:
                size = header_size(walk, walk.held)
            while walk.held_length < size and i < length:
                walk.held[walk.held_length] = data[i]
                walk.held_length += 1
                i += 1
                if walk.held_length == SHORT_HEADER_SIZE:
                    size = header_size(walk, walk.held)
            if walk.held_length < size:
                break
            walk.held_length = 0
            step = take_header(walk, walk.held)
        if step != FAULT_NONE:
            used[0] = i
            return step
    used[0] = length
    return STEP_NEED_MORE


@cython.final
cdef class ElementWalker:
    """Walks over one encoded dataset, fed in pieces of any size; one owner, no thread of its own.

    explicit: True or False names the form; None lets the first VR decide (two capitals are
    explicit). big_endian: the byte order. capture: tags at depth 0 whose values are kept, where
    they are of defined length and at most `capture_limit` bytes; of a repeated tag the first.
    stop_below, stop_above: the walk ends before the first tag at depth 0 outside them. depth_max:
    sequences within each other, at most 64. elements_max: headers in all, 0 for no limit. record:
    keep `(tag, VR or None, length)` of every element at depth 0 in `elements`.
    Any bytes give a result or ElementFault; values are never looked into, nor their lengths
    trusted with memory.
    """

    def __init__(self, explicit=None, *, bint big_endian=False, capture=(),
                 Py_ssize_t capture_limit=1024, uint32_t stop_below=0,
                 uint32_t stop_above=0xFFFFFFFF, int depth_max=DEPTH_MAX,
                 int64_t elements_max=0, bint record=False):
        cdef uint32_t tag
        free(self.walk.wanted)      # of an earlier __init__, which Python allows
        memset(&self.walk, 0, sizeof(Walk))
        if not 0 <= depth_max <= DEPTH_MAX:
            raise ValueError(f"depth_max must be 0 to {DEPTH_MAX}, not {depth_max}")
        if explicit is None:
            self.walk.levels[0].form = FORM_DETECT
        else:
            self.walk.levels[0].form = FORM_EXPLICIT if explicit else FORM_IMPLICIT
        self.walk.levels[0].big_endian = big_endian
        self.walk.depth_max = depth_max
        self.walk.elements_max = elements_max
        self.walk.stop_below = stop_below
        self.walk.stop_above = stop_above
        self.walk.report_all = record
        self.fault = FAULT_NONE
        self.is_stopped = False
        self.capturing = False
        self.partial = None
        self.capture_limit = capture_limit
        self.captured = {}
        self.vrs = {}
        self.elements = []
        if capture:
            tags = sorted(set(capture))
            if len(tags) > CAPTURE_TAGS_MAX:
                raise ValueError(f"at most {CAPTURE_TAGS_MAX} tags can be captured")
            self.walk.wanted = <uint32_t*>malloc(<size_t>len(tags) * sizeof(uint32_t))
            if self.walk.wanted == NULL:
                raise MemoryError
            for tag in tags:
                self.walk.wanted[self.walk.wanted_count] = tag
                self.walk.wanted_count += 1

    def __dealloc__(self):
        free(self.walk.wanted)

    @property
    def position(self):
        """Offset of the first byte that is not walked over; a held part of a header counts not."""
        return self.walk.position

    @property
    def skip(self):
        """Bytes of the current value that need not be fed: `jump` may pass over them instead."""
        return 0 if self.capturing else self.walk.remaining

    @property
    def depth(self):
        """Sequences and encapsulated values that are open."""
        return self.walk.depth

    @property
    def explicit(self):
        """The form of the dataset; None as long as it is not known."""
        if self.walk.levels[0].form == FORM_DETECT:
            return None
        return self.walk.levels[0].form == FORM_EXPLICIT

    @property
    def stopped(self):
        """True once a tag outside `stop_below` to `stop_above` was met, at `position`."""
        return self.is_stopped

    def feed(self, data):
        """Takes the next bytes; ElementFault where they cannot be a dataset, also ever after."""
        cdef Py_buffer view
        if self.fault != FAULT_NONE:
            self.fail(self.fault)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if not self.is_stopped:
                self.run(<const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def jump(self, int64_t count):
        """Passes over `count` bytes without feeding them; ValueError above `skip`."""
        if not 0 <= count <= self.skip:
            raise ValueError(f"cannot jump over {count} bytes: {self.skip} may be passed over")
        self.walk.remaining -= count
        self.walk.position += count

    def finish(self):
        """Says that no byte follows; ElementFault where an element or a sequence is unfinished."""
        if self.fault != FAULT_NONE:
            self.fail(self.fault)
        if self.is_stopped:
            return
        if self.walk.remaining > 0 or self.walk.held_length > 0:
            self.fail(FAULT_TRUNCATED)
        if self.walk.top > 0:
            self.fail(FAULT_UNFINISHED)

    cdef int fail(self, int fault) except -1:
        self.fault = fault
        raise ElementFault(self.walk.position, TEXTS[fault])

    cdef int keep(self, uint32_t tag, bytes value) except -1:
        self.captured[tag] = value
        self.vrs[tag] = self.walk.vr[:2].decode("ascii") if self.walk.vr[0] else None
        return 0

    cdef int begin_element(self) except -1:
        """A header at depth 0: noted, and its value kept where that was asked for."""
        cdef Walk* walk = &self.walk
        if walk.report_all:
            vr = walk.vr[:2].decode("ascii") if walk.vr[0] else None
            self.elements.append((walk.tag, vr, walk.length))
            if not is_wanted(walk, walk.tag):
                return 0
        # A repeated tag is not allowed (PS3.5 §7.1); the first is the one that DCMTK keeps, too.
        if walk.length > self.capture_limit or walk.tag in self.captured:
            return 0
        if walk.remaining == 0:
            return self.keep(walk.tag, b"")
        self.capturing = True
        return 0

    cdef int run(self, const uint8_t* data, Py_ssize_t length) except -1:
        cdef Walk* walk = &self.walk
        cdef Py_ssize_t used = 0
        cdef Py_ssize_t take
        cdef int step
        while True:
            if self.capturing:
                take = min(length, <Py_ssize_t>walk.remaining)
                if self.partial is None and take == walk.remaining:
                    self.keep(walk.tag, PyBytes_FromStringAndSize(<const char*>data, take))
                else:
                    if self.partial is None:
                        self.partial = bytearray()
                    self.partial += PyBytes_FromStringAndSize(<const char*>data, take)
                    if take == walk.remaining:
                        self.keep(walk.tag, bytes(self.partial))
                        self.partial = None
                walk.remaining -= take
                walk.position += take
                data += take
                length -= take
                if walk.remaining > 0:
                    return 0
                self.capturing = False
            step = advance(walk, data, length, &used)
            data += used
            length -= used
            if step == STEP_NEED_MORE:
                return 0
            if step == STEP_STOPPED:
                self.is_stopped = True
                return 0
            if step != STEP_ELEMENT:
                self.fail(step)
            self.begin_element()


# What `probe` looks for, ascending: in group 0002 the class, the instance and the syntax; in the dataset
# the class, the instance, the study and the series; a directory record tells a DICOMDIR.
# Deflated, and explicit VR big endian: not for one pass over bytes as they stand.
cdef frozenset WALKED_SYNTAXES = frozenset(("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"))
cdef uint32_t[3] META_TAGS = [0x00020002, 0x00020003, 0x00020010]
cdef uint32_t[5] DATASET_TAGS = [0x00041220, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E]


cdef struct Found:
    const uint8_t* value
    Py_ssize_t length


cdef bint collect(Walk* walk, const uint8_t* data, Py_ssize_t length, Found* found) noexcept nogil:
    """Walks all of `data`, or up to a stop; False where anything is not as it should be."""
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t used = 0
    cdef int i
    cdef int step
    while True:
        step = advance(walk, data + at, length - at, &used)
        at += used
        if step == STEP_STOPPED:
            return True
        if step == STEP_NEED_MORE:
            return walk.remaining == 0 and walk.held_length == 0 and walk.top == 0
        if step != STEP_ELEMENT or walk.remaining > length - at:
            return False
        for i in range(walk.wanted_count):
            if walk.wanted[i] == walk.tag and found[i].value == NULL:
                found[i].value = data + at
                found[i].length = <Py_ssize_t>walk.remaining


cdef bint is_uid(Found* found) noexcept nogil:
    """Strips the padding; True for 1 to 64 digits and dots (PS3.5 §9.1)."""
    cdef Py_ssize_t i
    cdef uint8_t c
    if found.value == NULL:
        return False
    while found.length > 0 and found.value[found.length - 1] in (0, 32):
        found.length -= 1
    if found.length < 1 or found.length > 64:
        return False
    for i in range(found.length):
        c = found.value[i]
        if not (48 <= c <= 57 or c == 46):
            return False
    return True


cdef Py_ssize_t read_meta(const uint8_t* p, Py_ssize_t length, Walk* walk, Found* meta) noexcept nogil:
    """Walks group 0002; returns the offset of the dataset, 0 where it is not as it should be."""
    cdef Py_ssize_t offset
    if length < 140 or memcmp(p + 128, b"DICM", 4) != 0:
        return 0
    memset(walk, 0, sizeof(Walk))
    memset(meta, 0, 3 * sizeof(Found))
    walk.levels[0].form = FORM_EXPLICIT
    walk.depth_max = DEPTH_MAX
    walk.stop_below = 0x00020000
    walk.stop_above = 0x0002FFFF
    walk.wanted = META_TAGS
    walk.wanted_count = 3
    if not collect(walk, p + 132, length - 132, meta) or walk.position == 0:
        return 0
    offset = 132 + <Py_ssize_t>walk.position
    if offset >= length or not is_uid(&meta[2]):
        return 0
    return offset


cdef void begin_dataset(Walk* walk, Found* dataset, uint32_t stop_above) noexcept nogil:
    memset(walk, 0, sizeof(Walk))
    memset(dataset, 0, 5 * sizeof(Found))
    walk.levels[0].form = FORM_DETECT
    walk.depth_max = DEPTH_MAX
    walk.stop_above = stop_above
    walk.wanted = DATASET_TAGS
    walk.wanted_count = 5


def glance(data):
    """(transfer syntax as named, explicit, SOP class) from the beginning of a regular file, or None.

    `data`: group 0002 and the dataset up to its SOP Class UID at least. What follows is not looked at.
    """
    cdef Py_buffer view
    cdef Walk walk
    cdef Found meta[3]
    cdef Found dataset[5]
    cdef Py_ssize_t offset
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        offset = read_meta(<const uint8_t*>view.buf, view.len, &walk, meta)
        if offset == 0:
            return None
        begin_dataset(&walk, dataset, 0x00080017)
        if not collect(&walk, <const uint8_t*>view.buf + offset, view.len - offset, dataset):
            return None
        if dataset[0].value != NULL or not is_uid(&dataset[1]):
            return None
        syntax = text(&meta[2])
        if syntax in WALKED_SYNTAXES:
            return None
        return syntax, walk.levels[0].form == FORM_EXPLICIT, text(&dataset[1])
    finally:
        PyBuffer_Release(&view)


cdef str text(Found* found):
    return found.value[:found.length].decode("ascii")


def probe(data):
    """What a regular Part-10 file in memory says, in one pass; None for every other.

    Returns (transfer syntax as named, explicit, dataset offset, SOP class, SOP instance, study, series):
    four valid UIDs of a dataset that is whole to its last element. Deflated and big-endian files, and
    all that is in any way odd, are left to the walker and its messages.
    """
    cdef Py_buffer view
    cdef Walk walk
    cdef Found meta[3]
    cdef Found dataset[5]
    cdef const uint8_t* p
    cdef Py_ssize_t offset
    cdef int i
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        p = <const uint8_t*>view.buf
        offset = read_meta(p, view.len, &walk, meta)
        if offset == 0:
            return None
        begin_dataset(&walk, dataset, 0xFFFFFFFFU)
        if not collect(&walk, p + offset, view.len - offset, dataset):
            return None
        if dataset[0].value != NULL:
            return None
        for i in range(1, 5):
            if not is_uid(&dataset[i]):
                return None
        syntax = text(&meta[2])
        if syntax in WALKED_SYNTAXES:
            return None
        return (syntax, walk.levels[0].form == FORM_EXPLICIT, offset, text(&dataset[1]),
                text(&dataset[2]), text(&dataset[3]), text(&dataset[4]))
    finally:
        PyBuffer_Release(&view)
