# cython: language_level=3, binding=True, embedsignature=True, boundscheck=False, wraparound=False, cdivision=True
# In place of bounds checks: the plan's own counts bound every loop, and IOV_BATCH bounds the iovec array.
"""The system calls of the data plane, on a socket's descriptor. Knows segments and slices, no PDU.

Only `dcmhaul.net` may import this module. The descriptor must be non-blocking.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from dcmhaul.wire._fragments cimport SEGMENTS_MAX, Segment, SendQueue
from dcmhaul.wire._frames cimport SLAB_SIZE, PduReader, borrow_slab, return_slab

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "sockio.h" nogil:
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    const int MSG_NOSIGNAL
    const int MSG_MORE
    const int MSG_DONTWAIT
    ssize_t sendmsg(int fd, const msghdr* message, int flags) noexcept
    ssize_t recv(int fd, void* buffer, size_t length, int flags) noexcept
    ssize_t pread(int fd, void* buffer, size_t length, int64_t offset) noexcept
    ssize_t pwritev(int fd, const iovec* vectors, int count, int64_t offset) noexcept
    ssize_t preadv(int fd, const iovec* vectors, int count, int64_t offset) noexcept
    ssize_t send(int fd, const void* buffer, size_t length, int flags) noexcept
    void rearm_quickack(int fd) noexcept
    ssize_t send_file_range(int out, int source, int64_t offset, size_t length) noexcept
    bint file_is_spent(int fd, int64_t offset) noexcept
    int64_t monotonic_us() noexcept

cdef extern from "<string.h>" nogil:
    void* memset(void* target, int value, size_t length) noexcept

cdef enum:
    IOV_BATCH = 512
    BUDGET_US = 2000        # microseconds that one call may keep the thread
    COPY_BELOW = 49152      # fragments of a file up to here cost less when they are copied together
    COPY_SIZE = 262144      # what is copied for one send
    BULK_SIZE = 65536       # one receive of so much: the peer streams, and is acknowledged without our help

DONE = 0
WOULD_BLOCK = 1
BUDGET_SPENT = 2

cdef enum:
    RESULT_DONE = 0
    RESULT_WOULD_BLOCK = 1
    RESULT_BUDGET = 2
    RESULT_ERROR = -1
    RESULT_FILE_SPENT = -2


cdef ssize_t send_memory(int fd, SendQueue queue) noexcept nogil:
    """One sendmsg of the run of memory segments at the head of the plan."""
    cdef iovec vectors[IOV_BATCH]
    cdef msghdr message
    cdef int i = queue.segment_head
    cdef int count = 0
    cdef int flags = MSG_NOSIGNAL | MSG_DONTWAIT
    while i < queue.segment_count and count < IOV_BATCH and queue.segments[i].data != NULL:
        vectors[count].iov_base = <void*>queue.segments[i].data
        vectors[count].iov_len = <size_t>queue.segments[i].length
        count += 1
        i += 1
    if i < queue.segment_count:
        flags |= MSG_MORE           # a file range follows: its header must not leave alone
    memset(&message, 0, sizeof(message))
    message.msg_iov = vectors
    message.msg_iovlen = <size_t>count
    return sendmsg(fd, &message, flags)


cdef bint is_copied(SendQueue queue) noexcept nogil:
    """Whether the plan goes on with fragments of a file that are too short for a system call each."""
    cdef int i = queue.segment_head
    if queue.segments[i].data != NULL:
        i += 1
    return i < queue.segment_count and queue.segments[i].data == NULL


cdef ssize_t send_copied(int fd, SendQueue queue, uint8_t* copy) noexcept nogil:
    """One send of the head of the plan, its files read into `copy`; 0 where they cannot be read so far.

    A file lies in one piece under the headers of its fragments: one read scatters it between them.
    """
    cdef iovec vectors[IOV_BATCH]
    cdef Segment* segment
    cdef int i = queue.segment_head
    cdef int count = 0
    cdef int source = -1
    cdef int64_t begin = 0
    cdef int64_t end = 0
    cdef int64_t done = 0
    cdef int64_t length
    while i < queue.segment_count and done < COPY_SIZE and count < IOV_BATCH:
        segment = &queue.segments[i]
        length = min(segment.length, COPY_SIZE - done)
        if segment.data != NULL:
            memcpy(copy + done, segment.data, <size_t>length)
        else:
            if source < 0:
                source = segment.fd
                begin = end = segment.offset
            elif segment.fd != source or segment.offset != end:
                break               # another file: with the next call
            vectors[count].iov_base = copy + done
            vectors[count].iov_len = <size_t>length
            count += 1
            end += length
        done += length
        i += 1
    if preadv(source, vectors, count, begin) != end - begin:
        return 0
    return send(fd, copy, <size_t>done, MSG_NOSIGNAL | MSG_DONTWAIT)


cdef void advance(SendQueue queue, int64_t left) noexcept nogil:
    """Takes `left` bytes off the head of the plan, which has that many."""
    cdef Segment* segment = &queue.segments[queue.segment_head]
    while left > 0 and left >= segment.length:
        left -= segment.length
        queue.segment_head += 1
        segment = &queue.segments[queue.segment_head % SEGMENTS_MAX]
    if left > 0:
        segment.length -= left
        segment.boundary = False
        if segment.data != NULL:
            segment.data += left
        else:
            segment.offset += left


cdef int execute(int fd, SendQueue queue, uint8_t* copy, int64_t budget, int64_t* done,
                 int64_t* calls) noexcept nogil:
    cdef int64_t started = monotonic_us()
    cdef ssize_t sent
    cdef Segment* segment
    while True:
        if queue.segment_head == queue.segment_count and queue.fill() == 0:
            return RESULT_DONE
        segment = &queue.segments[queue.segment_head]
        calls[0] += 1
        sent = 0
        if copy != NULL and is_copied(queue):
            sent = send_copied(fd, queue, copy)
        if sent != 0:
            pass
        elif segment.data != NULL:
            sent = send_memory(fd, queue)
        else:
            sent = send_file_range(fd, segment.fd, segment.offset, <size_t>segment.length)
            if sent == 0:
                return RESULT_FILE_SPENT
        if sent < 0:
            if errno == EINTR:
                continue            # EINTR
            if errno == EAGAIN:
                return RESULT_WOULD_BLOCK
            if segment.data == NULL and file_is_spent(segment.fd, segment.offset):
                return RESULT_FILE_SPENT
            return RESULT_ERROR
        done[0] += sent
        advance(queue, sent)
        if done[0] >= budget or monotonic_us() - started >= BUDGET_US:
            return RESULT_BUDGET


def run_plan(int fd, SendQueue queue not None, int64_t budget=4194304):
    """Sends what is queued until it is all sent, the socket is full, or the budget is spent.

    Returns (DONE | WOULD_BLOCK | BUDGET_SPENT, bytes sent, system calls). OSError where the socket
    failed; EOFError where a file has become shorter than its range, or cannot be read.
    """
    cdef int64_t done = 0
    cdef int64_t calls = 0
    cdef int result
    cdef uint8_t* copy = NULL
    if queue.fragment_max <= COPY_BELOW:
        copy = borrow_slab()        # without one every fragment is sent by itself
    with nogil:
        result = execute(fd, queue, copy, budget, &done, &calls)
    if copy != NULL:
        return_slab(copy)
    if result == RESULT_DONE and queue.segment_head == queue.segment_count:
        queue.release()
    elif queue.item_head >= 16:
        queue.release()
    if result == RESULT_ERROR:
        PyErr_SetFromErrno(OSError)
    if result == RESULT_FILE_SPENT:
        raise EOFError("the file became shorter, or unreadable, while it was sent")
    return result, done, calls


cdef int64_t gather(SendQueue queue, uint8_t* target, int64_t room) noexcept nogil:
    """Copies the head of the plan, which has `room` bytes at least; returns bytes, 0 at a spent file."""
    cdef int64_t done = 0
    cdef int64_t length
    cdef Segment* segment
    while done < room:
        segment = &queue.segments[queue.segment_head]
        length = min(segment.length, room - done)
        if segment.data != NULL:
            memcpy(target + done, segment.data, <size_t>length)
        else:
            length = pread(segment.fd, target + done, <size_t>length, segment.offset)
            if length < 0 and errno == EINTR:
                continue            # EINTR
            if length <= 0:
                return done
        advance(queue, length)
        done += length
    return done


def take_plan(SendQueue queue not None, int64_t limit):
    """Takes up to `limit` (> 0) of the bytes that are queued, files read; b"" once there are no more.

    For a transport that has to change them before they are sent. EOFError where a file has become
    shorter than its range, or cannot be read; what lies before it was taken by an earlier call.
    """
    cdef int64_t size = 0
    cdef int64_t done
    cdef int i
    cdef uint8_t* target
    if queue.segment_head == queue.segment_count and queue.fill() == 0:
        queue.release()
        return b""
    i = queue.segment_head
    while i < queue.segment_count and size < limit:
        size += queue.segments[i].length
        i += 1
    size = min(size, limit)
    data = PyBytes_FromStringAndSize(NULL, size)
    target = <uint8_t*>PyBytes_AS_STRING(data)
    with nogil:
        done = gather(queue, target, size)
    if done == 0:
        raise EOFError("the file became shorter, or unreadable, while it was sent")
    queue.release()
    return data if done == size else data[:done]


def receive(int fd, PduReader reader not None):
    """One receive into the reader's slab: bytes, 0 at the end of the stream, -1 would block, -2 slab full.

    OSError where the socket failed.
    """
    cdef ssize_t got
    cdef char* target
    cdef size_t room
    cdef bint empty
    if not reader.reserve():
        return -2
    target = <char*>reader.slab + reader.tail
    room = <size_t>(SLAB_SIZE - reader.tail)
    with nogil:
        if not reader.in_bulk:
            rearm_quickack(fd)
        got = recv(fd, target, room, MSG_DONTWAIT)
        while got < 0 and errno == EINTR:
            got = recv(fd, target, room, MSG_DONTWAIT)  # EINTR
        empty = got < 0 and errno == EAGAIN
        if empty and reader.in_bulk:
            rearm_quickack(fd)
        reader.in_bulk = got >= BULK_SIZE
    if empty:
        return -1
    if got < 0:
        PyErr_SetFromErrno(OSError)
    reader.tail += got
    return got


@cython.final
cdef class SliceView:
    """The dataset slices of a reader as a sink sees them; valid until the reader's next event."""

    cdef PduReader reader

    def __cinit__(self, PduReader reader not None):
        self.reader = reader

    @property
    def data_length(self):
        return self.reader.slices_length

    def copy_data(self):
        return self.reader.copy_data()

    def update(self, consume):
        self.reader.update(consume)

    def pwrite(self, int fd, int64_t offset):
        """Writes every slice to the file `fd` from `offset` on, without the GIL; returns bytes."""
        cdef int64_t total = 0
        cdef bint failed
        with nogil:
            failed = write_slices(fd, self.reader, offset, &total)
        if failed:
            PyErr_SetFromErrno(OSError)
        return total


cdef bint write_slices(int fd, PduReader reader, int64_t offset, int64_t* total) noexcept nogil:
    cdef iovec vectors[IOV_BATCH]
    cdef int first = 0
    cdef int count = reader.slice_count
    cdef int i
    cdef ssize_t written
    for i in range(count):
        vectors[i].iov_base = <void*>reader.slices[i].data
        vectors[i].iov_len = <size_t>reader.slices[i].length
    while first < count:
        written = pwritev(fd, vectors + first, count - first, offset)
        if written < 0:
            if errno == EINTR:
                continue            # EINTR
            return True
        offset += written
        total[0] += written
        while first < count and <size_t>written >= vectors[first].iov_len:
            written -= <ssize_t>vectors[first].iov_len
            first += 1
        if first < count:
            vectors[first].iov_base = <char*>vectors[first].iov_base + written
            vectors[first].iov_len -= <size_t>written
    return False


def read_ahead(int fd, int64_t offset, int64_t length):
    """Brings a range of a file into the page cache; blocks, so it is for a thread. Returns bytes read."""
    import os
    cdef int64_t end = offset + length
    cdef int64_t step
    while offset < end:
        step = min(end - offset, 1048576)
        got = len(os.pread(fd, step, offset))
        if got == 0:
            break
        offset += got
    return length - (end - offset)
