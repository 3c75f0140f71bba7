"""Where the search begins, well-formed input for every target, and a mutator for runs without a guide."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from dcmhaul import uids
from dcmhaul.objects.reencode import UNCOMPRESSED
from dcmhaul.wire.command import encode_command_set
from dcmhaul.wire.items import (
    AsyncOperationsWindow,
    PresentationContextAc,
    PresentationContextRq,
    RoleSelection,
    SopClassExtendedNegotiation,
    UserIdentityRq,
    UserInformation,
)
from dcmhaul.wire.pdu import AAbort, AAssociateAc, AAssociateRj, AAssociateRq, PDataTf, Pdv
from tests.datasets import CT_CLASS, plain_dataset, real_files
from tests.fuzz.targets import SYNTAXES

if TYPE_CHECKING:
    import random

__all__ = ["mutated", "seeds"]

SEED_MAX = 4096
INTERESTING = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFE,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFE,
    0xFFFFFFFF,
)
REQUEST = encode_command_set(
    {
        "AffectedSOPClassUID": CT_CLASS,
        "CommandField": 1,
        "MessageID": 7,
        "Priority": 0,
        "CommandDataSetType": 0,
        "AffectedSOPInstanceUID": "1.2.3.4",
        "MoveOriginatorApplicationEntityTitle": "MOVER",
        "MoveOriginatorMessageID": 3,
    }
)
RESPONSE = encode_command_set(
    {
        "CommandField": 0x8021,
        "MessageIDBeingRespondedTo": 9,
        "CommandDataSetType": 0x0101,
        "Status": 0xB000,
        "OffendingElement": (0x00100010, 0x00080018),
        "ErrorComment": "odd",
    }
)
USER = UserInformation(
    max_length_received=16384,
    implementation_class_uid="1.2.3",
    implementation_version_name="SOME_1",
    async_window=AsyncOperationsWindow(invoked=8, performed=1),
    roles=(RoleSelection(sop_class_uid=CT_CLASS, scu=False, scp=True),),
    extended=(SopClassExtendedNegotiation(sop_class_uid=CT_CLASS, information=b"\1\1\1"),),
    user_identity=UserIdentityRq(
        identity_type=2, response_requested=True, primary=b"a", secondary=b"b"
    ),
)
PDUS = (
    AAssociateRq(
        presentation_contexts=(
            PresentationContextRq(
                context_id=1, abstract_syntax=CT_CLASS, transfer_syntaxes=SYNTAXES
            ),
        ),
        called_ae_title="CALLED",
        calling_ae_title="CALLING",
        user_information=USER,
    ).encode(),
    AAssociateAc(
        presentation_contexts=(
            PresentationContextAc(
                context_id=1, result=0, transfer_syntax=uids.EXPLICIT_VR_LITTLE_ENDIAN
            ),
        ),
        called_ae_title="CALLED",
        calling_ae_title="CALLING",
        user_information=USER,
    ).encode(),
    AAssociateRj(result=1, source=2, reason=3).encode(),
    PDataTf(pdvs=(Pdv(context_id=1, is_command=True, is_last=True, fragment=REQUEST),)).encode(),
    AAbort(source=2, reason=6).encode(),
)
STREAM = PDUS[3] + b"".join(
    PDataTf(
        pdvs=(Pdv(context_id=1, is_command=False, is_last=place == 3, fragment=bytes(40)),)
    ).encode()
    for place in range(4)
)


def seeds(target: str) -> list[bytes]:
    """Well-formed input for the target of that name; truncated real files are as good as any."""
    if target == "file_meta":
        return [file.path.read_bytes()[:SEED_MAX] for file in real_files()]
    if target == "reencode":
        # Each real file into another syntax, and one that is whole.
        whole = [bytes((4 * number,)) + plain_dataset() for number in range(4)]
        return whole + [
            bytes((_flag(target, file.syntax) + number % 4 * 4,)) + file.dataset[:SEED_MAX]
            for number, file in enumerate(real_files())
        ]
    if target in ("elements", "content_digest"):
        return [bytes((_flag(target, f.syntax),)) + f.dataset[:SEED_MAX] for f in real_files()]
    return {
        "pdu_reader": [bytes((cut,)) + STREAM for cut in (0, 5, 254)],
        "a_associate": [pdu[:1] + pdu[6:] for pdu in PDUS],
        "command_set": [REQUEST, RESPONSE],
    }[target]


def _flag(target: str, syntax: str) -> int:
    """The first byte that tells a target of datasets which syntax follows."""
    if target == "content_digest":
        return SYNTAXES.index(syntax) if syntax in SYNTAXES else 1
    if target == "reencode":
        return UNCOMPRESSED.index(syntax) if syntax in UNCOMPRESSED else 0
    return {uids.IMPLICIT_VR_LITTLE_ENDIAN: 2, uids.EXPLICIT_VR_BIG_ENDIAN: 65}.get(syntax, 1)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Some octets changed, cut out, doubled, or replaced by a number that is often a limit."""
    octets = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        place = chance.randrange(len(octets) + 1)
        kind = chance.randrange(5)
        if kind == 0 and place < len(octets):
            octets[place] = chance.randrange(256)
        elif kind == 1:
            del octets[place : place + chance.randrange(1, 20)]
        elif kind == 2:
            octets[place:place] = octets[place : place + chance.randrange(1, 40)]
        elif kind == 3:
            number = chance.choice(INTERESTING)
            form = chance.choice((">I", "<I")) if number > 0xFFFF else chance.choice((">H", "<H"))
            encoded = struct.pack(form, number)
            octets[place : place + len(encoded)] = encoded
        else:
            del octets[place:]
    return bytes(octets)
