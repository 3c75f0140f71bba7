"""What a C-GET is made of: contexts for what is to come, associations enough for them, and requests.

Pure: classes and syntaxes in, (class, syntax) pairs and identifiers out. It asks nobody and opens nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import Dataset

from dcmhaul import uids
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = [
    "COMMON_STORAGE_CLASSES",
    "COMMON_TRANSFER_SYNTAXES",
    "WIDE_PASSES",
    "ExpectedInstance",
    "GetRequest",
    "carried",
    "choose_contexts",
    "context_passes",
    "pair_contexts",
    "plan_requests",
    "retrieve_identifier",
    "storage_class",
]

STORAGE_CONTEXTS_MAX = 127
"""128 contexts an association (PS3.8 §9.3.2.2: odd IDs of one byte), one of them for C-GET
itself.
"""

UID_LIST_MAX = 256
"""SOP Instance UIDs in one identifier: 256 of 64 characters stay far under the 65 534 bytes of VR
UI.
"""

# What a source may hold and does not announce: the syntaxes that are seen in practice, commonest
# first.
COMMON_TRANSFER_SYNTAXES: tuple[str, ...] = (
    uids.EXPLICIT_VR_LITTLE_ENDIAN,
    uids.IMPLICIT_VR_LITTLE_ENDIAN,
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, selection value 1
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.51",  # JPEG extended
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near lossless
    uids.EXPLICIT_VR_BIG_ENDIAN,
    uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    "1.2.840.10008.1.2.4.102",  # MPEG-4 AVC/H.264 high profile
    "1.2.840.10008.1.2.4.103",
    "1.2.840.10008.1.2.4.100",  # MPEG-2 main profile
    "1.2.840.10008.1.2.4.201",  # HTJ2K lossless
    "1.2.840.10008.1.2.4.203",  # HTJ2K
)


# For a source that names no class of an instance at all.
COMMON_STORAGE_CLASSES: tuple[str, ...] = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.1",  # CR
    "1.2.840.10008.5.1.4.1.1.1.1",  # DX, for presentation
    "1.2.840.10008.5.1.4.1.1.6.1",  # US
    "1.2.840.10008.5.1.4.1.1.3.1",  # US multi-frame
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture
    "1.2.840.10008.5.1.4.1.1.12.1",  # XA
    "1.2.840.10008.5.1.4.1.1.12.2",  # RF
    "1.2.840.10008.5.1.4.1.1.20",  # NM
    "1.2.840.10008.5.1.4.1.1.128",  # PET
    "1.2.840.10008.5.1.4.1.1.1.2",  # MG, for presentation
    "1.2.840.10008.5.1.4.1.1.2.1",  # enhanced CT
    "1.2.840.10008.5.1.4.1.1.4.1",  # enhanced MR
    "1.2.840.10008.5.1.4.1.1.88.22",  # enhanced SR
    "1.2.840.10008.5.1.4.1.1.88.33",  # comprehensive SR
    "1.2.840.10008.5.1.4.1.1.88.67",  # X-ray radiation dose SR
    "1.2.840.10008.5.1.4.1.1.88.59",  # key object selection
    "1.2.840.10008.5.1.4.1.1.11.1",  # presentation state
    "1.2.840.10008.5.1.4.1.1.104.1",  # encapsulated PDF
    "1.2.840.10008.5.1.4.1.1.481.3",  # RT structure set
)


# -- contexts --------------------------------------------------------------------------------------


def _wide_passes(limit: int = STORAGE_CONTEXTS_MAX) -> tuple[tuple[tuple[str, str], ...], ...]:
    common = [
        (sop_class, syntax)
        for syntax in COMMON_TRANSFER_SYNTAXES[:6]
        for sop_class in COMMON_STORAGE_CLASSES
    ]
    others = [
        (sop_class, syntax)
        for sop_class in uids.STORAGE_SOP_CLASSES
        if sop_class not in COMMON_STORAGE_CLASSES
        for syntax in _RARE_CLASS_SYNTAXES
    ]
    cut = [others[start : start + limit] for start in range(0, len(others), limit)]
    return tuple(tuple(pairs) for pairs in (common[:limit], *cut))


_RARE_CLASS_SYNTAXES: tuple[str, ...] = (
    uids.EXPLICIT_VR_LITTLE_ENDIAN,
    uids.IMPLICIT_VR_LITTLE_ENDIAN,
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
)

WIDE_PASSES = _wide_passes()
"""For instances whose class or syntax cannot be what the source said: every Storage SOP class in turn,
an association an item.
"""


def choose_contexts(
    needed: Sequence[tuple[str, str]],
    popular: Iterable[tuple[str, str]],
    limit: int = STORAGE_CONTEXTS_MAX,
) -> tuple[tuple[str, str], ...]:
    """`needed`, filled up to `limit` with the `popular` pairs, so that the association serves the
    next study.
    """
    chosen = dict.fromkeys(needed[:limit])
    for pair in popular:
        if len(chosen) >= limit:
            break
        chosen.setdefault(pair)
    return tuple(chosen)


def context_passes(
    classes: Mapping[str, int],
    announced: Mapping[str, Iterable[str]],
    doubted: Collection[str] = (),
    limit: int = STORAGE_CONTEXTS_MAX,
) -> list[tuple[tuple[str, str], ...]]:
    """The (class, syntax) pairs of one study, cut into associations; commonest class first.

    classes: SOP class -> instances of it; an empty class stands for one that the source did not name.
    announced: the syntaxes that the source named for a class. The common ones are proposed for a class
    without any, and for one that is doubted. A class is not split over two associations unless its
    pairs alone are too many.
    """
    passes: list[list[tuple[str, str]]] = [[]]
    for sop_class in sorted(classes, key=lambda uid: (-classes[uid], uid)):
        syntaxes = dict.fromkeys(announced.get(sop_class, ()))
        if not syntaxes or sop_class in doubted:
            syntaxes |= dict.fromkeys(COMMON_TRANSFER_SYNTAXES)
        if sop_class:
            pairs = [(sop_class, syntax) for syntax in syntaxes]
        else:
            pairs = [(c, syntax) for syntax in list(syntaxes)[:6] for c in COMMON_STORAGE_CLASSES]
        if passes[-1] and len(passes[-1]) + len(pairs) > limit:
            passes.append([])
        for pair in pairs:
            if len(passes[-1]) >= limit:
                passes.append([])
            passes[-1].append(pair)
    return [tuple(group) for group in passes if group]


def pair_contexts(pairs: Iterable[tuple[str, str]]) -> tuple[PresentationContextRq, ...]:
    """A context for each (class, syntax) pair, behind that of the retrieve itself, which has ID 1."""
    return tuple(
        PresentationContextRq(
            context_id=2 * index + 3, abstract_syntax=sop_class, transfer_syntaxes=(syntax,)
        )
        for index, (sop_class, syntax) in enumerate(pairs)
    )


# -- requests --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedInstance:
    """An instance of the inventory; an empty text stands for what the source did not say."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str = ""
    locator: str = ""
    """Of a folder: the path below it."""


def storage_class(uid: str) -> str:
    """The UID; "", as if none were named, where it cannot be that of a storage class."""
    return uid if uids.is_valid_uid(uid) and uid not in uids.OTHER_UIDS else ""


def carried(instances: Iterable[ExpectedInstance], pairs: Collection[tuple[str, str]]) -> set[str]:
    """The SOP Instance UIDs that one of the pairs carries; a class or syntax that is not known may be any."""
    chosen = frozenset(pairs)
    classes = {sop_class for sop_class, _ in chosen}
    syntaxes = {syntax for _, syntax in chosen}
    found = set()
    for instance in instances:
        sop_class, syntax = instance.sop_class_uid, instance.transfer_syntax_uid
        if sop_class and syntax:
            fits = (sop_class, syntax) in chosen
        else:
            fits = (not sop_class or sop_class in classes) and (not syntax or syntax in syntaxes)
        if fits:
            found.add(instance.sop_instance_uid)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class GetRequest:
    """One C-GET: a whole study (no series), a whole series (no instances), or instances of a
    series.
    """

    study_instance_uid: str
    series_instance_uid: str = ""
    sop_instance_uids: tuple[str, ...] = ()

    @property
    def level(self) -> str:
        """Query/Retrieve Level (0008,0052)."""
        if self.sop_instance_uids:
            return "IMAGE"
        return "SERIES" if self.series_instance_uid else "STUDY"


def plan_requests(
    study_instance_uid: str,
    expected: Collection[ExpectedInstance],
    wanted: Collection[str],
) -> list[GetRequest]:
    """The fewest C-GETs that bring `wanted` (SOP Instance UIDs) and nothing that is not wanted.

    Hierarchical requests carry one UID of each higher level (PS3.4 §C.4.3.1.3.1), so instances are
    asked for series by series. An instance whose series the source did not name can come with its
    whole study only.
    """
    wanted = frozenset(wanted)
    missing = [instance for instance in expected if instance.sop_instance_uid in wanted]
    if not missing:
        return []
    if len(missing) == len(expected) or any(not i.series_instance_uid for i in missing):
        return [GetRequest(study_instance_uid=study_instance_uid)]
    sizes = Counter(instance.series_instance_uid for instance in expected)
    by_series: defaultdict[str, list[str]] = defaultdict(list)
    for instance in missing:
        by_series[instance.series_instance_uid].append(instance.sop_instance_uid)
    requests = []
    for series, instances in by_series.items():
        if len(instances) == sizes[series]:
            requests.append(
                GetRequest(study_instance_uid=study_instance_uid, series_instance_uid=series)
            )
            continue
        requests.extend(
            GetRequest(
                study_instance_uid=study_instance_uid,
                series_instance_uid=series,
                sop_instance_uids=tuple(instances[start : start + UID_LIST_MAX]),
            )
            for start in range(0, len(instances), UID_LIST_MAX)
        )
    return requests


def retrieve_identifier(request: GetRequest) -> Dataset:
    """The identifier of the C-GET-RQ (PS3.4 §C.4.3.1.3)."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = request.level
    identifier.StudyInstanceUID = request.study_instance_uid
    if request.series_instance_uid:
        identifier.SeriesInstanceUID = request.series_instance_uid
    if request.sop_instance_uids:
        identifier.SOPInstanceUID = list(request.sop_instance_uids)
    return identifier
