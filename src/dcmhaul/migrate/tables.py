"""The ledger's tables, the states in them, and the rows as values; it opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from dcmhaul.engine.planning import ExpectedInstance
    from dcmhaul.objects.canonical import ContentDigest

__all__ = [
    "CHECKED_SAME",
    "EVENT",
    "EXCLUSION",
    "FINAL_STATES",
    "HELD_STATES",
    "INSTANCE",
    "METADATA",
    "NO_UID",
    "RUN",
    "SCHEMA_VERSION",
    "STUDY",
    "UID",
    "VERIFICATION",
    "CheckResult",
    "CheckRow",
    "DigestRow",
    "Exclusion",
    "FailureRow",
    "InstanceResult",
    "InstanceRow",
    "InstanceState",
    "RunRow",
    "RunState",
    "StudyListing",
    "StudyRow",
    "StudyState",
    "Totals",
]

SCHEMA_VERSION = 2
"""`upgrades` leads here from every earlier one."""


class RunState(IntEnum):
    LISTING = 0
    """The inventory of studies is not complete."""
    WORKING = 1
    DONE = 2


class StudyState(IntEnum):
    SEEN = 0
    RUNNING = 1
    DONE = 2
    PARTIAL = 3
    """Closed, with instances that failed; a later run tries those again."""
    DIFFERS = 4
    """Closed, yet the destination did not hold what it had acknowledged."""
    EXCLUDED = 5


class InstanceState(IntEnum):
    SEEN = 0
    ACKED = 1
    IDENTICAL_PRESENT = 2
    EXCLUDED = 3
    CONFLICT = 4
    FAILED = 5


class CheckResult(IntEnum):
    """What came of reading an instance back from the destination."""

    SAME_BYTES = 1
    SAME_CONTENT = 2
    """Encoded otherwise; it says the same."""
    COERCED = 3
    """Content alike; elements that an archive may set of its own accord differ."""
    DIFFERS = 4
    NOT_READ = 5
    """Listed by the destination, and not to be had from it."""

    @property
    def text(self) -> str:
        """As reports say it."""
        return self.name.lower().replace("_", " ")


CHECKED_SAME = frozenset({CheckResult.SAME_BYTES, CheckResult.SAME_CONTENT, CheckResult.COERCED})

HELD_STATES = frozenset({InstanceState.ACKED, InstanceState.IDENTICAL_PRESENT})
"""The destination has it."""

FINAL_STATES = HELD_STATES | {InstanceState.EXCLUDED, InstanceState.CONFLICT}
"""Not worked on again; FAILED is final for a run, and the next run tries it once more."""


METADATA = sa.MetaData()
# SQLite gives an id to INTEGER only, PostgreSQL would overflow it.
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

RUN = sa.Table(
    "run",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("job", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("src", sa.Text, nullable=False),
    sa.Column("dst", sa.Text, nullable=False),
    sa.Column("filter_json", sa.Text, nullable=False),
    sa.Column("options_json", sa.Text, nullable=False),
    sa.Column("tool_version", sa.Text, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("started", sa.BigInteger, nullable=False),
    sa.Column("ended", sa.BigInteger),
)
STUDY = sa.Table(
    "study",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("run_id", _ID, sa.ForeignKey("run.id"), nullable=False),
    sa.Column("study_uid", sa.Text, nullable=False),
    sa.Column("date", sa.Text, nullable=False, default=""),
    sa.Column("modality", sa.Text, nullable=False, default=""),
    sa.Column("n_expected", sa.Integer),
    sa.Column("n_src", sa.Integer),
    sa.Column("n_dst", sa.Integer),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("last_status", sa.Integer),
    sa.Column("comment", sa.Text),
    sa.Column("verified_level", sa.Text),
    sa.Column("verified_at", sa.BigInteger),
    sa.UniqueConstraint("run_id", "study_uid"),
)
UID = sa.Table(
    "uid",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("uid", sa.Text, nullable=False, unique=True),
)
INSTANCE = sa.Table(
    "instance",
    METADATA,
    sa.Column("study_id", _ID, sa.ForeignKey("study.id"), primary_key=True),
    sa.Column("sop_uid", sa.Text, primary_key=True),
    sa.Column("class_id", sa.Integer, nullable=False),
    sa.Column("ts_id", sa.Integer, nullable=False),
    sa.Column("series_id", sa.Integer, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("len", sa.BigInteger),
    sa.Column("sha256", sa.LargeBinary),
    sa.Column("content", sa.LargeBinary),
    sa.Column("coercible", sa.LargeBinary),
    sa.Column("dst_status", sa.Integer),
    sa.Column("retryable", sa.Boolean),
    sa.Column("comment", sa.Text),
    sa.Column("locator", sa.Text),
    sa.Column("updated", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
VERIFICATION = sa.Table(
    "verification",
    METADATA,
    sa.Column("study_id", _ID, sa.ForeignKey("study.id"), primary_key=True),
    sa.Column("sop_uid", sa.Text, primary_key=True),
    sa.Column("result", sa.SmallInteger, nullable=False),
    sa.Column("ts_id", sa.Integer, nullable=False),
    sa.Column("len", sa.BigInteger),
    sa.Column("sha256", sa.LargeBinary),
    sa.Column("content", sa.LargeBinary),
    sa.Column("differences", sa.Text),
    sa.Column("updated", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
EXCLUSION = sa.Table(
    "exclusion",
    METADATA,
    sa.Column("run_id", _ID, sa.ForeignKey("run.id"), primary_key=True),
    sa.Column("locator", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
EVENT = sa.Table(
    "event",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("run_id", _ID, sa.ForeignKey("run.id"), nullable=False),
    sa.Column("ts", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("json", sa.Text, nullable=False),
)

NO_UID = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One job. resumed: it was in the ledger before."""

    id: int
    job: str
    state: RunState
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyListing:
    """A study as the source lists it; n_expected is its own count, a hint."""

    study_instance_uid: str
    date: str = ""
    modality: str = ""
    n_expected: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """A study of the ledger. listed: its instances are in the ledger."""

    id: int
    study_instance_uid: str
    state: StudyState
    n_expected: int | None
    modality: str
    listed: bool
    verified_level: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRow:
    """An instance of the inventory and its recorded state."""

    expected: ExpectedInstance
    state: InstanceState


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceResult:
    """The second write of an instance. length: dataset bytes; sha256: of the dataset as it
    travelled; content: of what it says, where the job verifies digests.
    """

    study_id: int
    sop_instance_uid: str
    state: InstanceState
    transfer_syntax_uid: str = ""
    length: int | None = None
    sha256: bytes | None = None
    content: ContentDigest | None = None
    status: int | None = None
    retryable: bool | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestRow:
    """What is recorded of an instance that the destination holds, for its comparison.

    sha256, content: as it came from the source, None where this job did not move it. checked: what
    an earlier comparison found.
    """

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: bytes | None
    content: ContentDigest | None
    checked: CheckResult | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """One comparison. transfer_syntax_uid, length, sha256, content: as the destination sent it.

    differences: what differs, element tags and no values; "" where nothing does. study_instance_uid: set
    where it is read from the ledger.
    """

    sop_instance_uid: str
    result: CheckResult
    study_instance_uid: str = ""
    transfer_syntax_uid: str = ""
    length: int | None = None
    sha256: bytes | None = None
    content: bytes | None = None
    differences: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A file that is no instance of the job. kind: `skipped`, `failed` or `conflict`.

    Of a peer, `conflict` alone: an object that came under the SOP Instance UID of another; its locator
    is made of the UID and the digest.
    """

    locator: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRow:
    """One instance (or file, or study) that did not arrive, and why."""

    study_instance_uid: str
    sop_instance_uid: str
    locator: str
    status: int | None
    retryable: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counts of a run over all its invocations."""

    studies: int = 0
    studies_done: int = 0
    studies_failed: int = 0
    """Studies of which nothing could be listed."""
    instances: int = 0
    """All instances of the inventory."""
    acked: int = 0
    present: int = 0
    failed: int = 0
    failed_retryable: int = 0
    pending: int = 0
    skipped: int = 0
    differing: int = 0
    """Studies whose verification found a difference."""
    same_bytes: int = 0
    """Instances that were read back: this and the next four."""
    same_content: int = 0
    coerced: int = 0
    altered: int = 0
    not_read: int = 0
