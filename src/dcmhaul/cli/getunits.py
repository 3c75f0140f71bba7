"""What a get still lacks, identifier by identifier, and in which contexts that may come.

Pure: what the peer listed, what came and what was answered go in; requests, contexts and shortfalls come out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from dcmhaul import uids
from dcmhaul.cli.completion import UNIQUE_KEYS, level_of
from dcmhaul.cli.keys import QUERY_RETRIEVE_LEVEL, SPECIFIC_CHARACTER_SET, Identifier
from dcmhaul.cli.retrieval import storage_contexts
from dcmhaul.engine.planning import (
    COMMON_TRANSFER_SYNTAXES,
    UID_LIST_MAX,
    WIDE_PASSES,
    GetRequest,
    carried,
    context_passes,
    pair_contexts,
    plan_requests,
)
from dcmhaul.protocol.statuses import (
    SUCCESS,
    UNABLE_TO_PERFORM_SUBOPERATIONS,
    is_performed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dcmhaul.engine.planning import ExpectedInstance
    from dcmhaul.services.retrieve import RetrieveResponse
    from dcmhaul.wire.items import PresentationContextRq

    Pairs = tuple[tuple[str, str], ...]

__all__ = ["ROUNDS", "Pass", "Unit", "passes"]

ROUNDS: Final = 3
"""What was announced; every common syntax of these classes; every Storage SOP class."""

_IMPLICIT_ALONE: Final = (uids.IMPLICIT_VR_LITTLE_ENDIAN,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One association's contexts. pairs: the same as class and syntax, for units that are known.

    any_syntax: the syntax that the peer announced does not count, an instance may come in every pair of
    its class. any_class: the class does not count either.
    """

    contexts: tuple[PresentationContextRq, ...]
    pairs: Pairs = ()
    any_syntax: bool = False
    any_class: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Unit:
    """One retrieve identifier on its way.

    studies: the instances that the peer lists for it, by Study and SOP Instance UID; None where they are
    not known. arrived: stored here. refused: answered with a failure by us. asked: those for which a
    request was made with a context that may carry them. unfit: those for which the peer accepted none.
    listed_failed: what the peer named as failed. unexplained: failures that it counted beyond. over:
    nothing more is asked for, since the association was lost or the peer refused. held: what was here
    before the request that runs. said: the last final status in words. stored: how often something was
    stored here; one UID may come twice. counted: what the last final response to a request for unknown
    instances counts as sent, or as still to be sent.
    """

    identifier: Identifier
    studies: dict[str, dict[str, ExpectedInstance]] | None = None
    arrived: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    unfit: set[str] = field(default_factory=set)
    listed_failed: set[str] = field(default_factory=set)
    unexplained: int = 0
    response: RetrieveResponse | None = None
    said: str = ""
    over: bool = False
    held: frozenset[str] = frozenset()
    stored: int = 0
    counted: int = 0
    expected: dict[str, ExpectedInstance] = field(init=False)
    _tried: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        listed = (self.studies or {}).values()
        self.expected = {uid: instance for study in listed for uid, instance in study.items()}

    @property
    def missing(self) -> list[str]:
        """Listed, and neither here nor refused by us; in order of UID."""
        return sorted(self.expected.keys() - self.arrived - self.refused)

    @property
    def failed_some(self) -> bool:
        """The last answer says that sub-operations failed."""
        return self.response is not None and self.response.status != SUCCESS

    def wanted(self, one: Pass) -> set[str]:
        """What this pass may bring."""
        if self.over:
            return set()
        return self._carried(self.missing, one.pairs, one)

    def usable(self, wanted: set[str], accepted: Pairs, one: Pass) -> set[str]:
        """Those of `wanted` that may come in the pairs that the peer accepted; they are asked for now."""
        found = self._carried(wanted, accepted, one)
        self.asked |= found
        self.unfit |= wanted - found
        self._tried |= set(one.pairs)
        return found

    def _carried(self, wanted: Iterable[str], pairs: Pairs, one: Pass) -> set[str]:
        instances = (self.expected[uid] for uid in wanted)
        if not one.any_syntax:
            return carried(instances, pairs)
        fresh = set(pairs) - self._tried
        if not fresh:
            return set()
        if one.any_class:
            return set(wanted)
        syntax = next(iter(fresh))[1]
        classes = {(sop_class, syntax) for sop_class, _ in fresh}
        return carried((replace(i, transfer_syntax_uid=syntax) for i in instances), classes)

    def requests(self, wanted: set[str]) -> list[Identifier]:
        """The fewest identifiers that bring `wanted` and no other of this unit."""
        assert self.studies is not None
        if len(wanted) == len(self.expected):
            return [self.identifier]
        if level_of(self.identifier) == "IMAGE":
            key = UNIQUE_KEYS["IMAGE"]
            listed = sorted(wanted)
            found = []
            for start in range(0, len(listed), UID_LIST_MAX):
                part = self.identifier.copy()
                part.put(key, "\\".join(listed[start : start + UID_LIST_MAX]), "UI")
                found.append(part)
            return found
        return [
            self._identifier(request)
            for study, instances in self.studies.items()
            for request in plan_requests(study, instances.values(), wanted & instances.keys())
        ]

    def _identifier(self, request: GetRequest) -> Identifier:
        identifier = Identifier()
        identifier.put(QUERY_RETRIEVE_LEVEL, request.level, "CS")
        for tag in (SPECIFIC_CHARACTER_SET, UNIQUE_KEYS["PATIENT"]):
            if tag in self.identifier.elements:
                identifier.elements[tag] = self.identifier.elements[tag]
        for level, value in (
            ("STUDY", request.study_instance_uid),
            ("SERIES", request.series_instance_uid),
            ("IMAGE", "\\".join(request.sop_instance_uids)),
        ):
            if value:
                identifier.put(UNIQUE_KEYS[level], value, "UI")
        return identifier

    def answered(self, response: RetrieveResponse, wanted: set[str] | None) -> None:
        """The final response of one request. wanted: what it was to bring, None where nobody knows."""
        if wanted is None and self.held:
            # Asked for as a whole once more, in other contexts: what is here already fails in these.
            listed = tuple(uid for uid in response.failed_sop_instance_uids if uid not in self.held)
            failed = max(len(listed), (response.failed or 0) - len(self.held))
            response = replace(response, failed=failed, failed_sop_instance_uids=listed)
        self.response = response
        self.counted = 0 if wanted is not None else response.promised or 0
        self.over = not ended(response)
        self.listed_failed |= set(response.failed_sop_instance_uids) - self.refused
        if wanted is not None:
            told = set(response.failed_sop_instance_uids) | (wanted - self.arrived)
            self.unexplained += max(0, (response.failed or 0) - len(told | self.refused))

    def came(self, sop_instance_uid: str, *, stored: bool) -> None:
        """An instance was answered."""
        if stored:
            self.stored += 1
            self.arrived.add(sop_instance_uid)
            self.refused.discard(sop_instance_uid)
            self.listed_failed.discard(sop_instance_uid)
        elif sop_instance_uid not in self.arrived:
            self.refused.add(sop_instance_uid)


def ended(response: RetrieveResponse) -> bool:
    """Whether every sub-operation was tried: what failed may come in other contexts."""
    status = response.status
    return is_performed(status) or status == UNABLE_TO_PERFORM_SUBOPERATIONS


def passes(
    units: Sequence[Unit], classes: Sequence[str], preferred: tuple[str, ...], number: int
) -> Iterator[tuple[Pass, list[Unit]]]:
    """The associations of round `number`, each with the units that go over it, as the ones before left them.

    classes: to be proposed for units whose instances are not known. preferred: the syntaxes of `+x`;
    implicit VR alone is proposed alone.
    """
    alone = preferred == _IMPLICIT_ALONE
    known = [unit for unit in units if unit.studies is not None]
    for pairs in _pairs(known, preferred, number):
        one = Pass(
            contexts=pair_contexts(pairs),
            pairs=pairs,
            any_syntax=number > 0 or alone,
            any_class=number == ROUNDS - 1,
        )
        wanting = [unit for unit in known if unit.wanted(one)]
        if wanting:
            yield one, wanting
    unknown = [unit for unit in units if unit.studies is None and not unit.over]
    if number:
        # Only the peer's own count says that something is missing.
        unknown = [unit for unit in unknown if unit.response is not None and unit.response.failed]
        others = [uid for uid in uids.STORAGE_SOP_CLASSES if uid not in classes]
        classes = others if number == 1 else ()
    contexts = storage_contexts(classes, preferred) if unknown else ()
    if contexts:
        yield Pass(contexts=contexts), unknown


def _pairs(units: Sequence[Unit], preferred: tuple[str, ...], number: int) -> Sequence[Pairs]:
    lacking = [unit.expected[uid] for unit in units if not unit.over for uid in unit.missing]
    if number == ROUNDS - 1:
        # A peer that failed to send them, or names no class, may hold them under any.
        said = any(unit.missing and unit.failed_some for unit in units if not unit.over)
        nameless = any(not instance.sop_class_uid for instance in lacking)
        alone = preferred == _IMPLICIT_ALONE
        return WIDE_PASSES if lacking and (said or nameless) and not alone else ()
    counts = Counter(instance.sop_class_uid for instance in lacking)
    if preferred == _IMPLICIT_ALONE:
        return () if number else context_passes(counts, dict.fromkeys(counts, preferred))
    announced: dict[str, list[str]] = {}
    for instance in lacking:
        if instance.transfer_syntax_uid:
            announced.setdefault(instance.sop_class_uid, []).append(instance.transfer_syntax_uid)
    if preferred:
        announced = {
            sop_class: [*preferred, *announced.get(sop_class, COMMON_TRANSFER_SYNTAXES)]
            for sop_class in counts
        }
    return context_passes(counts, announced, counts if number else ())
