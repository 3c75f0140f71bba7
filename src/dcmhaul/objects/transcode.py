"""A compressed instance made uncompressed by pydicom's decoders, whole, in memory and in a temporary file.

Compression is not offered: what it loses is no concern of a transfer.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from dcmhaul import uids
from dcmhaul.errors import CannotReencode, InstanceError
from dcmhaul.net.types import FileRange
from dcmhaul.objects.part10 import open_instance
from dcmhaul.objects.reencoded import DatasetStream, ReencodedInstance
from dcmhaul.wire.part10 import encode_file_meta

if TYPE_CHECKING:
    from dcmhaul.objects.instances import OutgoingInstance

__all__ = ["PIXELS_LENGTH_MAX", "decompress"]

PIXELS_LENGTH_MAX: Final = 1 << 30
"""Octets of pixels that are decompressed; they are held in memory."""


def decompress(instance: OutgoingInstance) -> ReencodedInstance:
    """The instance in Explicit VR Little Endian; its UID stays. Blocks, and uses memory for all of it.

    CannotReencode where pydicom has no decoder, or what it is given is broken or too large.
    """
    syntax = instance.transfer_syntax_uid
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    try:
        available = get_decoder(UID(syntax)).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise CannotReencode(
            f"pydicom has no decoder for {uids.name(syntax)}; pylibjpeg and python-gdcm bring some"
        )
    head = encode_file_meta(instance.sop_class_uid, instance.sop_instance_uid, syntax)
    with tempfile.NamedTemporaryFile(prefix="dcmhaul-", suffix=".dcm") as file:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _write_decompressed(head + _whole(instance), file)
        file.flush()
        try:
            made = open_instance(file.name)
        except InstanceError as exc:
            raise CannotReencode(f"what pydicom made of it cannot be read: {exc}") from exc
    return ReencodedInstance(
        original=instance,
        transfer_syntax_uid=made.transfer_syntax_uid,
        dataset=made.dataset,
        _length=made.length,
    )


def _whole(instance: OutgoingInstance) -> bytes:
    dataset = instance.dataset
    if isinstance(dataset, DatasetStream):
        return b"".join(dataset.chunks())
    if isinstance(dataset, FileRange):
        return os.pread(dataset.fd, dataset.length, dataset.offset)
    return bytes(dataset)


def _write_decompressed(part10: bytes, file: Any) -> None:
    from pydicom import dcmread

    try:
        dataset = dcmread(BytesIO(part10))
        length = (
            int(dataset.Rows)
            * int(dataset.Columns)
            * int(dataset.get("NumberOfFrames") or 1)
            * int(dataset.SamplesPerPixel)
            * (int(dataset.BitsAllocated) + 7 >> 3)
        )
        if length > PIXELS_LENGTH_MAX:
            raise CannotReencode(f"its pixels are {length} bytes, above {PIXELS_LENGTH_MAX}")
        dataset.decompress(generate_instance_uid=False)
        dataset.save_as(file, enforce_file_format=True)
    except CannotReencode:
        raise
    except Exception as exc:  # decoders raise many kinds, and their texts quote values
        raise CannotReencode(f"cannot be decompressed ({type(exc).__name__})") from exc
