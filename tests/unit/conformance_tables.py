"""The negotiation part of docs/conformance.md, made from the code.

`python -m tests.unit.conformance_tables` writes it.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from dcmhaul import uids
from dcmhaul.archive import open_archive
from dcmhaul.cli.models import MODELS, query_context
from dcmhaul.net import AcceptorLimits, Timeouts
from dcmhaul.protocol.negotiation import (
    PDU_LENGTH_DEFAULT,
    WINDOW_MAX,
    SupportedContext,
)
from dcmhaul.services.provider import acceptor_policy
from dcmhaul.services.storage import StorageScp
from dcmhaul.services.verification import VerificationScp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dcmhaul.services.provider import Service

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"

Row = tuple[str, ...]


def table(heads: Row, rows: Iterable[Row]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def implementation() -> str:
    timeouts, limits = Timeouts(), AcceptorLimits()
    rows = [
        ("Implementation Class UID", f"`{uids.IMPLEMENTATION_CLASS_UID}`"),
        # The number of the version is not the page's business.
        (
            "Implementation Version Name",
            f"`{re.sub(r'[0-9].*', '', uids.IMPLEMENTATION_VERSION_NAME)}` and the version",
        ),
        ("Application Context Name", "`1.2.840.10008.3.1.1.1`"),
        (
            "Maximum Length announced",
            f"{PDU_LENGTH_DEFAULT}; `-pdu`: 4096 to 4294967295, 0 for none",
        ),
        ("Asynchronous Operations Window, granted", f"at most {WINDOW_MAX}"),
        ("Associations accepted at once", str(limits.associations)),
    ]
    for name, what in (
        ("connect", "connection"),
        ("association", "A-ASSOCIATE answer"),
        ("artim", "ARTIM timer"),
        ("dimse", "DIMSE response"),
        ("progress", "bytes within a message"),
        ("release", "A-RELEASE answer"),
        ("idle", "next message, as acceptor"),
    ):
        rows.append((f"Time-out: {what}", f"{getattr(timeouts, name):g} s"))
    return table(("what", "value"), rows)


def _syntaxes(transfer_syntaxes: tuple[str, ...]) -> str:
    return ", ".join(map(uids.name, transfer_syntaxes)) or "any of the table below"


def _roles(context: SupportedContext) -> str:
    return "SCU, SCP" if context.accept_scp_role else "SCU"


def accepted(supported: Mapping[str, SupportedContext]) -> str:
    """What an acceptor takes; the storage classes are one row, for they are all alike."""
    storage = {uid for uid in supported if uid in uids.STORAGE_SOP_CLASSES}
    rows = [
        (
            uids.name(uid),
            f"`{uid}`",
            _syntaxes(context.transfer_syntaxes),
            _roles(context),
            " ".join(f"{octet:02X}" for octet in context.extended) or "none",
        )
        for uid, context in sorted(supported.items(), key=lambda pair: uids.name(pair[0]))
        if uid not in storage
    ]
    kinds = {(supported[uid].transfer_syntaxes, _roles(supported[uid])) for uid in storage}
    for syntaxes, roles in kinds:
        rows.append(
            (f"{len(storage)} storage classes", "below", _syntaxes(syntaxes), roles, "none")
        )
    heads = (
        "SOP class",
        "UID",
        "transfer syntaxes",
        "role of the requestor",
        "extended negotiation",
    )
    return table(heads, rows)


def _receive() -> list[Service]:
    return [VerificationScp(), StorageScp(None)]


def _archive() -> Mapping[str, SupportedContext]:
    async def supported() -> Mapping[str, SupportedContext]:
        with tempfile.TemporaryDirectory() as folder:
            async with open_archive(folder) as archive:
                return acceptor_policy(archive.services(), ae_title=None).supported

    return trio.run(supported)


def proposed() -> str:
    rows = [
        (
            "echo",
            uids.name(uids.VERIFICATION),
            f"`{uids.VERIFICATION}`",
            uids.name(uids.IMPLICIT_VR_LITTLE_ENDIAN),
            "SCU",
        )
    ]
    for verb, attribute in (("find", "find_uid"), ("get", "get_uid"), ("move", "move_uid")):
        for model in MODELS.values():
            if uid := getattr(model, attribute):
                syntaxes = query_context(1, uid, ()).transfer_syntaxes
                rows.append((verb, uids.name(uid), f"`{uid}`", _syntaxes(syntaxes), "SCU"))
    rows += [
        ("get", "the storage classes that the study is said to hold", "", "one a context", "SCP"),
        ("send", "the storage classes of the files", "", "that of the files, one a context", "SCU"),
    ]
    return table(("verb", "SOP class", "UID", "transfer syntaxes", "role"), rows)


def transfer_syntaxes() -> str:
    rows = [(name, f"`{uid}`") for uid, name in uids.TRANSFER_SYNTAXES.items()]
    return table(("transfer syntax", "UID"), rows)


def storage_classes() -> str:
    rows = [(name, f"`{uid}`") for uid, name in sorted(uids.STORAGE_SOP_CLASSES.items())]
    return table(("storage SOP class", "UID"), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "implementation": implementation,
    "archive": lambda: accepted(_archive()),
    "receive": lambda: accepted(acceptor_policy(_receive(), ae_title=None).supported),
    "proposed": proposed,
    "transfer syntaxes": transfer_syntaxes,
    "storage classes": storage_classes,
}


def filled(page: str) -> str:
    """The page with its tables as the code has them now."""
    for name, make in TABLES.items():
        head, tail = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, _, rest = page.partition(head)
        _, found, after = rest.partition(tail)
        assert found, f"{PAGE.name} has no place for {name!r}"
        page = before + head + make() + found + after
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
