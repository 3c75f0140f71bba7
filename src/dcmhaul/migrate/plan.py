"""What a migration is asked to do and who it is: options, job identity, verification levels.

Pure: nothing here opens a file, a socket or the ledger.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag

from dcmhaul.archive.attributes import BY_TAG, Level
from dcmhaul.config import Peer
from dcmhaul.errors import ConfigurationError
from dcmhaul.net.types import SocketOptions, Timeouts

if TYPE_CHECKING:
    from dcmhaul.engine.destination import ReceiveOptions

__all__ = [
    "Endpoint",
    "JobIdentity",
    "MigrateOptions",
    "RequestOptions",
    "Verification",
    "changed",
    "check_filter",
    "default_ledger_url",
    "filter_text",
    "identity",
    "is_sampled",
    "is_within",
    "job_name",
    "parse_verification",
    "path_text",
    "satisfies",
    "text_path",
]

Endpoint = Peer | Path
Verification = Literal["none", "count", "uids", "digest"]

RESERVED_JOB_NAMES = frozenset({"verify", "compare", "limit", "pause", "resume", "cancel"})


class RequestOptions(Protocol):
    """What the proposal of an association is made of. pdu_length_max: in bytes."""

    @property
    def calling_ae_title(self) -> str: ...
    @property
    def pdu_length_max(self) -> int: ...
    @property
    def window(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateOptions:
    """One migration. SRC and DST are each a peer or a folder.

    filter: the keys of the STUDY level C-FIND (for a folder: matched against each study).
    job: its name in the ledger; None makes one of source, destination and filter.
    ledger_url: an SQLAlchemy URL. associations: transfers at once. window: C-STORE requests that
    may be outstanding on one association. verify: what must hold at the destination afterwards;
    verify_percent: how many of the instances `digest` reads back.
    pdu_length_max: what we announce, in bytes. pdu_length_send_max: what we send at most, 0 = the
    peer's maximum. receive: where a peer without C-GET sends what `digest` reads back, by C-MOVE to our
    calling_ae_title; None where it cannot. reencode: what the destination takes in another uncompressed
    transfer syntax alone is sent in that one.
    """

    source: Endpoint
    destination: Endpoint
    ledger_url: str
    filter: Dataset = field(default_factory=Dataset)
    job: str | None = None
    associations: int = 4
    window: int = 8
    verify: Verification = "uids"
    verify_percent: float = 100.0
    dry_run: bool = False
    calling_ae_title: str = "DCMHAUL"
    pdu_length_max: int = 131072
    pdu_length_send_max: int = 0
    timeouts: Timeouts = field(default_factory=Timeouts)
    socket_options: SocketOptions = field(default_factory=SocketOptions)
    receive: ReceiveOptions | None = None
    reencode: bool = False

    @property
    def compares_content(self) -> bool:
        """Whether what passes is digested for a comparison with the destination."""
        return self.verify == "digest"

    @property
    def verify_level(self) -> str:
        """The level as the ledger records it: `digest:100`, `uids`."""
        if self.verify != "digest":
            return self.verify
        return f"digest:{self.verify_percent:g}"


# -- identity --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JobIdentity:
    """What makes two runs the same job; `filter_json` is canonical DICOM JSON (PS3.18 annex F)."""

    source: str
    destination: str
    filter_json: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the three, in hexadecimal."""
        text = "\0".join((self.source, self.destination, self.filter_json))
        return hashlib.sha256(text.encode()).hexdigest()


def default_ledger_url() -> str:
    """`$DCMHAUL_LEDGER`, else `ledger.db` in the user's data folder."""
    if url := os.environ.get("DCMHAUL_LEDGER"):
        return url
    base = os.environ.get("XDG_DATA_HOME")
    folder = Path(base) if base else Path.home() / ".local" / "share"
    return f"sqlite:///{folder / 'dcmhaul' / 'ledger.db'}"


def identity(options: MigrateOptions) -> JobIdentity:
    """The identity of the job that these options describe."""
    return JobIdentity(
        source=_endpoint_text(options.source),
        destination=_endpoint_text(options.destination),
        filter_json=json.dumps(
            options.filter.to_json_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True
        ),
    )


def _endpoint_text(endpoint: Endpoint) -> str:
    return path_text(str(endpoint.absolute())) if isinstance(endpoint, Path) else str(endpoint)


def path_text(path: str) -> str:
    """A path as the ledger keeps it, which is UTF-8: other bytes become `\\xNN`, a backslash two."""
    doubled = path.replace("\\", "\\\\")
    return doubled.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def text_path(text: str) -> str:
    """The path that `path_text` wrote down."""

    def original(escape: re.Match[str]) -> str:
        return os.fsdecode(bytes.fromhex(escape[1])) if escape[1] else "\\"

    return re.sub(r"\\(?:\\|x([89a-f][0-9a-f]))", original, text)


def is_within(inner: Endpoint, outer: Endpoint) -> bool:
    """Whether both are folders, and the one is the other or lies below it, links followed."""
    return (
        isinstance(inner, Path)
        and isinstance(outer, Path)
        and inner.resolve().is_relative_to(outer.resolve())
    )


def job_name(options: MigrateOptions) -> str:
    """The name that was given, or one made of source, destination and filter."""
    if options.job is not None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", options.job):
            raise ConfigurationError(
                f"a job's name has up to 64 letters, digits, '_', '-' or '.', not {options.job!r}"
            )
        if options.job in RESERVED_JOB_NAMES:
            raise ConfigurationError(f"{options.job!r} is a reserved word: choose another job name")
        return options.job

    def short(endpoint: Endpoint) -> str:
        if isinstance(endpoint, Path):
            text = endpoint.absolute().name or "root"
        else:
            text = endpoint.name or endpoint.ae_title or endpoint.host
        return re.sub(r"[^A-Za-z0-9_.]+", "_", text)[:20]

    made = f"{short(options.source)}-{short(options.destination)}"
    return f"{made}-{identity(options).fingerprint[:8]}"


def changed(recorded: JobIdentity, asked: JobIdentity) -> list[str]:
    """One phrase for each part that differs; empty where the job is the same."""
    pairs = (
        ("source", recorded.source, asked.source),
        ("destination", recorded.destination, asked.destination),
        ("filter", filter_text(recorded.filter_json), filter_text(asked.filter_json)),
    )
    return [f"{name} was {old}, now {new}" for name, old, new in pairs if old != new]


_PLAIN_VRS = frozenset({"CS", "DA", "DT", "IS", "TM", "UI"})


def filter_text(filter_json: str) -> str:
    """The keys of a canonical filter, for a message; values that may tell of a patient are left out."""
    keys = json.loads(filter_json)
    if not keys:
        return "none"
    parts = []
    for tag in sorted(keys):
        name = keyword_for_tag(int(tag, 16)) or tag
        values = keys[tag].get("Value", [])
        hidden = tag.startswith("0010") or keys[tag].get("vr") not in _PLAIN_VRS
        shown = "..." if hidden else "\\".join(str(value) for value in values)
        # Two filters that differ in a hidden value must still be told apart.
        digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:6]
        parts.append(f"{name}={shown}" if shown != "..." else f"{name}=...#{digest}")
    return " ".join(parts)


def check_filter(keys: Dataset) -> None:
    """Refuses keys below STUDY level: a peer would ignore them (PS3.4 §C.4.1.2), and too much would
    be selected in silence.
    """
    for element in keys:
        known = BY_TAG.get(int(element.tag))
        if known is not None and known.level > Level.STUDY:
            hint = "; for a modality use ModalitiesInStudy" if element.keyword == "Modality" else ""
            raise ConfigurationError(
                f"migrate selects whole studies, and {element.keyword} is no key of STUDY level{hint}"
            )
        if element.VR == "SQ":
            raise ConfigurationError(
                f"migrate's filter takes plain values: {element.keyword or element.tag} is a sequence"
            )


# -- verification ----------------------------------------------------------------------------------


def parse_verification(text: str) -> tuple[Verification, float]:
    """`none`, `count`, `uids`, `digest` or `digest:P%`: the level, and the percentage read back."""
    if text in ("none", "count", "uids", "digest"):
        return cast("Verification", text), 100.0
    match = re.fullmatch(r"digest:([0-9]+(?:\.[0-9]+)?)%?", text)
    percent = float(match[1]) if match else 0.0
    if match is None or not 0 < percent <= 100:
        raise ConfigurationError(
            f"verification is none, count, uids, digest or digest:P% with P up to 100, not {text!r}"
        )
    return "digest", percent


def satisfies(recorded: str, asked: str) -> bool:
    """Whether a study that is verified at the level `recorded` need not be verified at `asked`."""
    if asked == "none":
        return True
    order = {"count": 0, "uids": 1}
    if not asked.startswith("digest:"):
        return order.get(recorded, 2) >= order[asked]
    if not recorded.startswith("digest:"):
        return False
    return float(recorded.partition(":")[2]) >= float(asked.partition(":")[2])


def is_sampled(sop_instance_uid: str, percent: float) -> bool:
    """Whether an instance is among the `percent` that are read back: the same in every run."""
    digest = hashlib.sha256(sop_instance_uid.encode()).digest()
    return int.from_bytes(digest[:8], "big") < percent / 100 * 2**64
