"""The one module that makes a path from a UID, and that makes a file appear: whole, or not at all.

Must not know what the bytes mean, and must never build a name from anything but a checked UID.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from dcmhaul import crash
from dcmhaul.uids import is_valid_uid

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Durability",
    "Folder",
    "SpaceWatch",
    "TemporaryFile",
    "Trouble",
    "instance_name",
    "instance_path",
    "make_folder",
    "sync_data",
]

# What open(O_TMPFILE) and link answer where a file system or a system cannot do it.
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS, errno.EPERM}
# A file system with less than this is nearly full, and so is a small one with less than its part.
LOW_WATER_BYTES = 256 << 20
LOW_WATER_PART = 50
_O_TMPFILE: int = getattr(os, "O_TMPFILE", 0)


class Durability(StrEnum):
    """When an instance counts as stored.

    EACH: after its own data and directory entry are on stable storage. BATCH: the same, the sync of
    the directory shared by those that wait for it together. NONE: when the bytes are with the kernel.
    """

    EACH = "each"
    BATCH = "batch"
    NONE = "none"


def instance_name(sop_instance_uid: str, copy: int = 0) -> str:
    """The file name of an instance: `<UID>.dcm`, and `<UID>.<copy>.dcm` for other bytes under it.

    ValueError for anything but 1 to 64 digits and dots: no other byte of a peer gets into a path.
    """
    if not is_valid_uid(sop_instance_uid):
        raise ValueError("a SOP Instance UID is 1 to 64 digits and dots")
    return f"{sop_instance_uid}.{copy}.dcm" if copy else f"{sop_instance_uid}.dcm"


def instance_path(folder: str | os.PathLike[str], sop_instance_uid: str, copy: int = 0) -> str:
    """The path of an instance in `folder`; ValueError for what is no UID."""
    return os.path.join(folder, instance_name(sop_instance_uid, copy))


class TemporaryFile:
    """A file that nobody sees until `link`; without it nothing remains. One owner.

    It has no name where the system has O_TMPFILE, else a hidden one in the same folder.
    """

    __slots__ = ("_folder", "_name", "fd")

    def __init__(self, folder: Folder, fd: int, name: str | None) -> None:
        self._folder = folder
        self._name = name
        self.fd = fd

    def sync(self) -> None:
        """Makes what was written durable; blocks. An OSError is final for the file."""
        if crash.armed:
            crash.passed("tmp.written")
        sync_data(self.fd)
        if crash.armed:
            crash.passed("tmp.fdatasync")

    def link(self, name: str, folder: Folder | None = None) -> None:
        """Makes the file appear as `name` at once; FileExistsError where there is one already.

        folder: another folder of the same file system. The file stays open.
        """
        self._link(name, folder or self._folder)
        if crash.armed:
            crash.passed("tmp.linked")

    def _link(self, name: str, target: Folder) -> None:
        if self._name is None:
            source = f"/proc/self/fd/{self.fd}"
            # With a directory descriptor Python calls linkat with AT_SYMLINK_FOLLOW.
            os.link(source, name, dst_dir_fd=target.fd, follow_symlinks=True)
            return
        try:
            os.link(self._name, name, src_dir_fd=self._folder.fd, dst_dir_fd=target.fd)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            target.rename_new(self._folder, self._name, name)
        else:
            os.unlink(self._name, dir_fd=self._folder.fd)
        self._name = None

    def close(self) -> None:
        """Closes the descriptor; a file that was not linked is gone."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        os.close(fd)
        name, self._name = self._name, None
        if name is not None:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._folder.fd)

    def __del__(self) -> None:
        self.close()


class Folder:
    """A folder that receives files, held by its descriptor; made if it is missing.

    mode: permissions of new files, as with open(2) less the umask. durable: if it is made, its name is
    made durable. Safe for several threads.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, mode: int = 0o666, durable: bool = True
    ) -> None:
        self.path = os.fspath(path)
        self._mode = mode
        make_folder(self.path, durable=durable)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "nothing can be written there", self.path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._nameless = bool(_O_TMPFILE) and os.path.isdir("/proc/self/fd")
        self._rename_lock = threading.Lock()
        self._syncs = _SharedSync(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def create_temporary(self) -> TemporaryFile:
        """A new, empty file for reading and writing; OSError as open(2) gives it."""
        flags = os.O_RDWR | os.O_CLOEXEC
        if self._nameless:
            try:
                fd = os.open(".", flags | _O_TMPFILE, self._mode, dir_fd=self.fd)
                return TemporaryFile(self, fd, None)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._nameless = False
        name = f".dcmhaul-{os.getpid()}-{secrets.token_hex(8)}.tmp"
        fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, self._mode, dir_fd=self.fd)
        return TemporaryFile(self, fd, name)

    def open(self, name: str) -> int:
        """A descriptor for reading a file that lies here."""
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Removes a file that lies here."""
        os.unlink(name, dir_fd=self.fd)

    def rename_new(self, source: Folder, old: str, new: str) -> None:
        """A rename that replaces nothing, for file systems without hard links."""
        with self._rename_lock:
            try:
                os.stat(new, dir_fd=self.fd, follow_symlinks=False)
            except FileNotFoundError:
                os.rename(old, new, src_dir_fd=source.fd, dst_dir_fd=self.fd)
            else:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)

    def sync(self, *, shared: bool = True) -> None:
        """Makes the names in the folder durable; blocks, so it is for a thread.

        shared: one fsync serves all threads that asked before it began. An error is raised in each
        of them, and is final: the kernel forgets what it could not write.
        """
        if shared:
            self._syncs.sync()
        else:
            _sync_directory(self.fd)

    def close(self) -> None:
        """Closes the descriptor of the folder; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def make_folder(path: str | os.PathLike[str], *, mode: int = 0o777, durable: bool = True) -> None:
    """Makes a folder and those above it, where they are missing; durable: their names are, too.

    The name of one that is there is made durable all the same: whoever made it may have been killed.
    """
    place = os.path.abspath(path)
    above = [os.path.dirname(place)]
    while not os.path.isdir(above[-1]):
        above.append(os.path.dirname(above[-1]))
    existed = os.path.isdir(place)
    os.makedirs(path, mode=mode, exist_ok=True)
    for name in reversed(above) if durable else ():
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            if existed:
                continue
            raise
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # as in `_sync_directory`
                raise
        finally:
            os.close(fd)


class Trouble:
    """Tells of a place that takes nothing: a line where the reason is new, and one when it takes again."""

    def __init__(self, path: str | os.PathLike[str], report: Callable[[str], None]) -> None:
        self._path = os.fspath(path)
        self._report = report
        self._reason = ""

    def failed(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            self._report(f"{self._path}: {reason}")

    def worked(self) -> None:
        if self._reason:
            self._reason = ""
            self._report(f"{self._path}: takes objects again")


class SpaceWatch:
    """Whether the file system of a folder is nearly full; `report` gets a line at each change."""

    def __init__(self, path: str | os.PathLike[str], report: Callable[[str], None]) -> None:
        self._path = path
        self._report = report
        self._low = False

    def is_low(self) -> bool:
        """False where the system does not say; what is stored then finds out by itself."""
        try:
            found = os.statvfs(self._path)
        except OSError:
            return False
        free = found.f_bavail * found.f_frsize
        mark = min(LOW_WATER_BYTES, found.f_blocks * found.f_frsize // LOW_WATER_PART)
        if (free < mark) != self._low:
            self._low = free < mark
            self._report(
                f"{free >> 20} MiB are free for {os.fspath(self._path)}: "
                + ("senders are rejected until it is more" if self._low else "senders are accepted")
            )
        return self._low


def sync_data(fd: int) -> None:
    """The data of a file to stable storage; blocks."""
    # macOS has no fdatasync.
    (getattr(os, "fdatasync", None) or os.fsync)(fd)


def _sync_directory(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a directory, and say so in this way.
        if error.errno != errno.EINVAL:
            raise
    if crash.armed:
        crash.passed("dir.fsynced")


class _Batch:
    __slots__ = ("done", "error", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.done = False
        self.error: OSError | None = None


class _SharedSync:
    """Group commit: while one fsync runs, the next batch gathers; its first thread then runs it."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._changed = threading.Condition()
        self._gathering = _Batch()
        self._running = False

    def sync(self) -> None:
        with self._changed:
            batch = self._gathering
            batch.waiting += 1
            while self._running and not batch.done:
                self._changed.wait()
            leads = not batch.done
            if leads:
                self._running = True
                self._gathering = _Batch()
        if leads:
            try:
                _sync_directory(self._folder.fd)
            except OSError as error:
                batch.error = error
            with self._changed:
                batch.done = True
                self._running = False
                self._changed.notify_all()
        if batch.error is not None:
            raise OSError(batch.error.errno, os.strerror(batch.error.errno or 0))
