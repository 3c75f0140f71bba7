# cython: language_level=3, binding=True, embedsignature=True, boundscheck=False, wraparound=False, cdivision=True
# In place of bounds checks: `size - offset` is compared before each read, `room` before each write, and an
# element number is compared with ELEMENTS_MAX before it indexes a table.
"""Regular command sets, quickly: ascending elements of group 0000 with values that fit (PS3.7 §6.3.1).

Whatever is not regular is declined with None; wire/command.py then decides slowly what is wrong with it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeLatin1
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef enum:
    ELEMENTS_MAX = 0x1100       # one past the largest element number in use
    HEADER_SIZE = 8             # group, element, length
    ENCODED_MAX = 2048          # bytes of a command set that is built on the stack

cdef enum Kind:
    KIND_UNKNOWN = 0
    KIND_US = 1
    KIND_UI = 2
    KIND_TEXT = 3

cdef uint8_t kinds[ELEMENTS_MAX]
cdef list keywords = [None] * ELEMENTS_MAX


def define(int element, str keyword not None, str vr not None):
    """Makes an element known; the table itself is in wire/command.py. AT and UL stay with the slow path."""
    if not 0 <= element < ELEMENTS_MAX:
        raise ValueError(f"element number {element:#06x} is outside the table")
    kind = KIND_UNKNOWN
    if vr == "US":
        kind = KIND_US
    elif vr == "UI":
        kind = KIND_UI
    elif vr in ("AE", "LO"):
        kind = KIND_TEXT
    kinds[element] = <uint8_t>kind
    keywords[element] = keyword


cdef inline uint32_t load_le32(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef inline void store_le32(uint8_t* p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value & 0xFF)
    p[1] = <uint8_t>(value >> 8 & 0xFF)
    p[2] = <uint8_t>(value >> 16 & 0xFF)
    p[3] = <uint8_t>(value >> 24)


cdef inline bint is_padding(uint8_t value) noexcept nogil:
    return value == 0 or value == 32


def decode(bytes data not None):
    """The known elements by keyword, or None where the set is not regular."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t offset = 0
    cdef Py_ssize_t start, end
    cdef uint32_t length
    cdef uint32_t element
    cdef long last = -1
    cdef uint8_t kind
    cdef dict values = {}
    while offset < size:
        if size - offset < HEADER_SIZE or p[offset] != 0 or p[offset + 1] != 0:
            return None
        element = <uint32_t>p[offset + 2] | <uint32_t>p[offset + 3] << 8
        length = load_le32(p + offset + 4)
        start = offset + HEADER_SIZE
        if length > <uint32_t>0x10000 or <Py_ssize_t>length > size - start or length & 1:
            return None
        if <long>element <= last:
            return None
        last = <long>element
        offset = end = start + <Py_ssize_t>length
        if element == 0:
            if length != 4:
                return None
            values["CommandGroupLength"] = load_le32(p + start)
            continue
        if element >= ELEMENTS_MAX or keywords[element] is None:
            continue
        kind = kinds[element]
        if kind == KIND_US:
            if length == 2:
                values[keywords[element]] = <uint32_t>p[start] | <uint32_t>p[start + 1] << 8
            elif length:
                return None
        elif kind == KIND_UNKNOWN:
            return None
        else:
            while end > start and is_padding(p[end - 1]):
                end -= 1
            if kind == KIND_TEXT:
                while start < end and is_padding(p[start]):
                    start += 1
            values[keywords[element]] = PyUnicode_DecodeLatin1(<char*>p + start, end - start, NULL)
    return values


def encode(tuple elements not None, tuple values not None):
    """The set with `values` for the element numbers `elements`, which ascend; None where one is not regular."""
    cdef uint8_t buffer[ENCODED_MAX]
    cdef Py_ssize_t used = 12
    cdef Py_ssize_t i
    cdef Py_ssize_t length
    cdef Py_ssize_t count = len(elements)
    cdef uint32_t element
    cdef uint8_t kind
    cdef const char* text
    cdef long number
    if len(values) != count:
        return None
    for i in range(count):
        value = values[i]
        if value is None:
            continue
        element = elements[i]
        if element >= ELEMENTS_MAX:
            return None
        kind = kinds[element]
        if kind == KIND_US:
            if not isinstance(value, int):
                return None
            number = value
            if number < 0 or number > 0xFFFF or ENCODED_MAX - used < HEADER_SIZE + 2:
                return None
            store_le32(buffer + used, element << 16)
            store_le32(buffer + used + 4, 2)
            buffer[used + 8] = <uint8_t>(number & 0xFF)
            buffer[used + 9] = <uint8_t>(number >> 8)
            used += HEADER_SIZE + 2
        elif kind == KIND_UNKNOWN or not isinstance(value, str) or not PyUnicode_IS_ASCII(value):
            return None
        else:
            text = PyUnicode_AsUTF8AndSize(value, &length)
            if ENCODED_MAX - used < HEADER_SIZE + length + 1:
                return None
            store_le32(buffer + used, element << 16)
            store_le32(buffer + used + 4, <uint32_t>(length + (length & 1)))
            used += HEADER_SIZE
            memcpy(buffer + used, text, <size_t>length)
            used += length
            if length & 1:
                buffer[used] = 0 if kind == KIND_UI else 32
                used += 1
    store_le32(buffer, 0)
    store_le32(buffer + 4, 4)
    store_le32(buffer + 8, <uint32_t>(used - 12))
    return PyBytes_FromStringAndSize(<char*>buffer, used)
