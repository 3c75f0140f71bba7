"""What the store tests share: sets of files, our sender and receiver, and datasets compared."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom
import trio
from pynetdicom.dsutils import encode

from dcmhaul.net import open_association, serve_associations
from dcmhaul.objects.part10 import FileInstance
from dcmhaul.objects.sinks import FolderSinks
from dcmhaul.objects.sources import open_entries
from dcmhaul.objects.synth import write_studies
from dcmhaul.protocol.negotiation import PDU_LENGTH_DEFAULT, AssociationRequest, plan_contexts
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.storage import StorageScp, StorageScu, StoreOutcome
from dcmhaul.wire.part10 import parse_file_meta
from tests.datasets import DEFLATED, FILES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from dcmhaul.net import Association


def real_set(classes: frozenset[str] | None = None) -> list[FileInstance]:
    """pydicom's files that can be sent, one a SOP Instance UID, in a fixed order."""
    found: dict[str, FileInstance] = {}
    for entry in open_entries([FILES]):
        if not isinstance(entry, FileInstance):
            continue
        if classes is None or entry.sop_class_uid in classes:
            found.setdefault(entry.sop_instance_uid, entry)
    return list(found.values())


def synthetic_set(folder: Path) -> list[FileInstance]:
    """Small and large objects of every modality, single and multi-frame; 24 of them."""
    write_studies(folder / "small", 2, 4, 2, "mix", "interop", rows=64, columns=64)
    write_studies(folder / "frames", 1, 4, 2, "mix", "interop frames", rows=128, frames=4)
    return [entry for entry in open_entries([folder]) if isinstance(entry, FileInstance)]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(path: str | Path) -> tuple[str, str]:
    """Transfer syntax and SHA-256 of the dataset of a Part-10 file, group 0002 excluded."""
    data = Path(path).read_bytes()
    meta = parse_file_meta(data)
    return meta.transfer_syntax_uid, sha256(data[meta.dataset_offset :])


def received(folder: Path) -> dict[str, tuple[str, str]]:
    """SOP Instance UID in group 0002 -> what `digest` says, of every file in a peer's folder."""
    found: dict[str, tuple[str, str]] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            uid = parse_file_meta(path.read_bytes()).sop_instance_uid
            assert uid not in found
            found[uid] = digest(path)
    return found


def sendable_by_pydicom(path: str) -> bool:
    """Whether a file has what pynetdicom's sender wants, and pydicom can encode it again."""
    dataset = pydicom.dcmread(path, force=True)
    meta = dataset.file_meta
    if "SOPInstanceUID" not in dataset or "MediaStorageSOPClassUID" not in meta:
        return False
    syntax = meta.get("TransferSyntaxUID")
    if syntax is None or syntax.is_private:
        return False
    try:
        encoded = encode(
            dataset, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated
        )
    except Exception:  # whatever pydicom dislikes in its own odd files
        return False
    return encoded is not None


def expected(instances: Iterable[FileInstance]) -> dict[str, tuple[str, str]]:
    """What `received` must say of them. A deflated dataset of odd length gets a NUL (PS3.5 §A.5)."""
    found = {}
    for one in instances:
        data = Path(one.path).read_bytes()
        dataset = data[parse_file_meta(data).dataset_offset :]
        if one.transfer_syntax_uid == DEFLATED and len(dataset) % 2:
            dataset += b"\0"
        found[one.sop_instance_uid] = (one.transfer_syntax_uid, sha256(dataset))
    return found


def values(dataset: pydicom.Dataset) -> dict[int, object]:
    """Tag -> value, sequences as lists; without VRs, group lengths and trailing padding."""
    return {
        int(element.tag): [values(item) for item in element.value]
        if element.VR == "SQ"
        else repr(element.value)
        for element in dataset
        if element.tag.element != 0 and element.tag != 0xFFFCFFFC
    }


def same_values(first: str | Path, second: str | Path) -> bool:
    """Whether two files hold the same elements, however a sender has encoded them again.

    VRs do not count: OW becomes OB where pixels are encapsulated (PS3.5 §A.4).
    """
    return values(pydicom.dcmread(first, force=True)) == values(pydicom.dcmread(second, force=True))


async def send(
    instances: Iterable[FileInstance], host: str, port: int, called: str = "ANY-SCP"
) -> list[StoreOutcome]:
    """Sends on as many associations as the contexts need, one after another."""
    pending = list(instances)
    outcomes: list[StoreOutcome] = []
    pairs = [(one.sop_class_uid, one.transfer_syntax_uid) for one in pending]
    for contexts in plan_contexts(pairs):
        offered = {(c.abstract_syntax, c.transfer_syntaxes[0]) for c in contexts}
        batch = iter(
            [one for one in pending if (one.sop_class_uid, one.transfer_syntax_uid) in offered]
        )

        async def take(batch: Iterable[FileInstance] = batch) -> FileInstance | None:
            return next(iter(batch), None)

        request = AssociationRequest(
            called_ae_title=called, calling_ae_title="DCMHAUL", contexts=contexts, window=8
        )
        async with open_association(host, port, request) as association:
            await StorageScu(association).run(take, outcomes.append)
    return outcomes


@contextlib.asynccontextmanager
async def receiver(
    folder: Path, pdu: int = PDU_LENGTH_DEFAULT
) -> AsyncIterator[tuple[int, FolderSinks]]:
    """Our Storage SCP on a free port of the loopback; yields the port and its sinks.

    pdu: what it announces.
    """
    with FolderSinks(folder) as sinks:
        services = [StorageScp(sinks)]

        async def handle(association: Association) -> None:
            await serve_services(association, services)

        policy = acceptor_policy(services, ae_title=None, pdu_length_max=pdu)
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(
                lambda task_status: serve_associations(
                    handle, policy, host="127.0.0.1", port=0, task_status=task_status
                )
            )
            yield addresses[0][1], sinks
            nursery.cancel_scope.cancel()
