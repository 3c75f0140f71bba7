"""What `get` and `move` ask before they retrieve: unique keys of what matches, parts, SOP classes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from pydicom.datadict import keyword_for_tag

from dcmhaul.cli.answers import TypedKeys, level_of_key
from dcmhaul.cli.completion import (
    UNIQUE_KEYS,
    is_single,
    level_of,
    levels_of,
    question,
    retrieve_identifiers,
)
from dcmhaul.cli.exits import Exit, for_status
from dcmhaul.cli.keys import (
    QUERY_RETRIEVE_LEVEL,
    SPECIFIC_CHARACTER_SET,
    Element,
    Identifier,
    dump_lines,
    encode_identifier,
    vr_of,
)
from dcmhaul.cli.models import MODELS, unique_keys
from dcmhaul.engine.planning import ExpectedInstance, storage_class
from dcmhaul.errors import DcmhaulError
from dcmhaul.protocol.statuses import SUCCESS, describe
from dcmhaul.services.query import find
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydicom.dataset import Dataset

    from dcmhaul.cli.console import Console
    from dcmhaul.net import Association

__all__ = ["COMMON_CLASSES", "FindFailed", "Questioner", "storage_contexts"]

_SOP_CLASS: Final = 0x00080016
_MODALITY: Final = 0x00080060
_MODALITIES_IN_STUDY: Final = 0x00080061
_SOP_CLASSES_IN_STUDY: Final = 0x00080062
_AVAILABLE_TRANSFER_SYNTAX: Final = 0x00083002

# One of the 128 contexts is the retrieve's own.
STORAGE_CONTEXTS_MAX: Final = 127
# Series that are asked for their SOP classes one by one, where studies do not tell theirs.
SERIES_ASKED_MAX: Final = 64
# Questions by which the instances of a retrieve are listed beforehand; each takes a round trip.
LISTINGS_MAX: Final = 1024

_IMPLICIT: Final = "1.2.840.10008.1.2"
_JPEG: Final = "1.2.840.10008.1.2.4."
_SYNTAXES: Final = (
    "1.2.840.10008.1.2.1",
    _IMPLICIT,
    _JPEG + "70",
    _JPEG + "90",
    _JPEG + "50",
    "1.2.840.10008.1.2.5",
    _JPEG + "80",
    _JPEG + "91",
    _JPEG + "51",
    _JPEG + "57",
    _JPEG + "81",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    _JPEG + "100",
    _JPEG + "101",
    _JPEG + "102",
    _JPEG + "103",
    _JPEG + "107",
    _JPEG + "108",
    _JPEG + "201",
    _JPEG + "202",
    _JPEG + "203",
)

# The classes proposed where nobody tells which ones will come; with two contexts each they are all
# that fits. The numbers stand behind 1.2.840.10008.5.1.4.1.1.
_COMMON: Final = """
1 1.1 1.1.1 1.2 1.2.1 1.3 2 2.1 2.2 3.1 4 4.1 4.2 4.3 4.4 6.1 6.2 7 7.1 7.2 7.3 7.4
9.1.1 9.1.2 9.1.3 11.1 11.2 12.1 12.1.1 12.2 12.2.1 13.1.1 13.1.3 20 66 66.1 66.3 66.4 67
77.1.1 77.1.1.1 77.1.4 77.1.4.1 77.1.5.1 77.1.5.4 77.1.6 88.11 88.22 88.33 88.50 88.59 88.65
88.67 104.1 104.2 128 130 481.1 481.2 481.3 481.5 481.8
"""
COMMON_CLASSES: Final = tuple(f"1.2.840.10008.5.1.4.1.1.{number}" for number in _COMMON.split())


def storage_contexts(
    classes: Sequence[str], preferred: Sequence[str] = ()
) -> tuple[PresentationContextRq, ...]:
    """The contexts of a C-GET's sub-operations, at most 127, with IDs from 3.

    As far as there is room each class has a context for each syntax, so that the SCP can send what
    it holds as it is; the last context of a class takes the syntaxes that are left. Implicit VR alone
    as `preferred` (`+xi`) proposes nothing else.
    """
    wanted = list(dict.fromkeys(classes))[:STORAGE_CONTEXTS_MAX]
    if not wanted:
        return ()
    syntaxes = tuple(dict.fromkeys((*preferred, *_SYNTAXES)))
    if tuple(preferred) == (_IMPLICIT,):
        syntaxes = (_IMPLICIT,)
    room = min(STORAGE_CONTEXTS_MAX // len(wanted), len(syntaxes))
    if room == 2:
        # Uncompressed of either kind first: an SCP can turn one into the other.
        split = [syntaxes[:2], syntaxes[2:]]
    else:
        split = [(uid,) for uid in syntaxes[: room - 1]] + [syntaxes[room - 1 :]]
    pairs = [(uid, part) for uid in wanted for part in split if part]
    return tuple(
        PresentationContextRq(
            context_id=2 * index + 3, abstract_syntax=uid, transfer_syntaxes=tuple(part)
        )
        for index, (uid, part) in enumerate(pairs)
    )


class FindFailed(DcmhaulError):
    """A C-FIND that a retrieve needed ended with a failure."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(
            f"the C-FIND before the retrieve ended with {describe(status, 'C-FIND')}"
            + (f" ({comment})" if comment else "")
        )
        self.status = status
        self.exit_code = for_status(status)


class Questioner:
    """Asks on one association, in one model; each question is a C-FIND."""

    def __init__(self, association: Association, model: str, console: Console) -> None:
        self._association = association
        self._model = model
        self._console = console
        self._listings_left = LISTINGS_MAX
        agreed = association.agreement.extended.get(MODELS[model].find_uid, b"")
        self._relational = agreed[:1] == b"\x01"

    async def ask(self, identifier: Identifier) -> list[Dataset]:
        """All matches; FindFailed where the final status is no success."""
        self._console.debug_lines(dump_lines(identifier))
        matches = []
        encode = partial(encode_identifier, identifier)
        async with find(self._association, MODELS[self._model], encode) as responses:
            async for response in responses:
                if response.pending:
                    try:
                        matches.append(response.dataset())
                    except ValueError as error:
                        self._console.warn(f"a match cannot be read: {error}")
                elif response.status != SUCCESS:
                    raise FindFailed(response.status, response.error_comment)
        self._console.info(f"C-FIND at {level_of(identifier)} level: {len(matches)} matches")
        return matches

    async def matches(self, typed: Identifier) -> list[dict[int, str]]:
        """The unique keys of what matches the keys as typed; those typed as one value complete them.

        A peer need not match keys of levels above the one asked (PS3.4 §C.4.1.2.1). Where it does
        not show that it did, or refuses them, they are asked for at their own levels.
        """
        keys = TypedKeys(self._model, typed)
        level = level_of(typed)
        try:
            found = await self.ask(question(self._model, typed))
        except FindFailed as error:
            if not keys.above or for_status(error.status) is not Exit.PERMANENT:
                raise
            self._console.warn_once(f"warning: {error}; asked level by level")
            return await self._descend(typed, keys)
        unproved = {tag for match in found for tag in keys.unproved(match)}
        if unproved or (not found and keys.lists_above):
            self._console.warn_once(
                f"the peer does not show that it matches {_names(unproved or keys.above)} at {level} "
                "level: asked level by level"
            )
            return await self._descend(typed, keys)
        return await self._meant(typed, keys, found)

    async def _descend(self, typed: Identifier, keys: TypedKeys) -> list[dict[int, str]]:
        """The same from the highest level that has such keys, each level by the unique keys above."""
        levels = levels_of(self._model)
        asked = level_of(typed)
        of_keys = {tag: level_of_key(self._model, tag) for tag in typed.elements}
        start = min(levels.index(of_keys[tag] or asked) for tag in keys.above)
        units = [unique_keys_of(typed)]
        found: list[dict[int, str]] = []
        for level in levels[start : levels.index(asked) + 1]:
            above = levels[: levels.index(level)]
            here = {
                tag: element
                for tag, element in typed.elements.items()
                if of_keys[tag] == level
                or tag == SPECIFIC_CHARACTER_SET
                or (level == asked and of_keys[tag] not in above)
            }
            found = []
            for unit in units:
                query = Identifier(dict(here))
                query.put(QUERY_RETRIEVE_LEVEL, level, "CS")
                for key in (UNIQUE_KEYS[name] for name in above):
                    if key in unit:
                        query.put(key, unit[key], vr_of(key))
                found += await self.matches(query)
            key = UNIQUE_KEYS[level]
            units = list({match[key]: match for match in found if key in match}.values())
        return found

    async def _meant(
        self, typed: Identifier, keys: TypedKeys, found: list[Dataset]
    ) -> list[dict[int, str]]:
        """The unique keys of the matches that do not contradict what was typed."""
        level = level_of(typed)
        contradicted = [keys.contradicted(match) for match in found]
        kept = [match for match, wrong in zip(found, contradicted, strict=True) if not wrong]
        if len(kept) < len(found):
            self._console.warn_once(
                f"warning: the peer's matches at {level} level whose {_names(*contradicted)} is not "
                "what was typed are left out"
            )
        single = {tag: uid for tag, uid in unique_keys_of(typed).items() if is_single(uid)}
        matches = [single | unique_keys(match) for match in kept]
        unsaid = keys.unsaid(kept)
        if not matches or not unsaid or self._relational:
            return matches
        below = self._keys_below(typed, unsaid)
        if below:
            matches = await self._holding(level, matches, below)
        unsaid -= {*below, *([_MODALITIES_IN_STUDY] if _MODALITY in below else ())}
        if unsaid:
            self._console.warn_once(
                f"warning: the peer does not show that it matches {_names(unsaid)} at {level} level: "
                "more may come than was meant"
            )
        return matches

    def _keys_below(self, typed: Identifier, unsaid: Iterable[int]) -> dict[int, Element]:
        """Those of the keys that can be asked for one level below the one typed."""
        levels = levels_of(self._model)
        lower = levels[levels.index(level_of(typed)) + 1 :][:1]
        found = {t: typed.elements[t] for t in unsaid if level_of_key(self._model, t) in lower}
        modalities = typed.elements.get(_MODALITIES_IN_STUDY)
        if lower == ("SERIES",) and _MODALITIES_IN_STUDY in unsaid and modalities is not None:
            found.setdefault(_MODALITY, Element(_MODALITY, "CS", modalities.text))
        # Several values of what is no UID are no key of the standard's (PS3.4 §C.2.2.2).
        return {t: e for t, e in found.items() if e.vr == "UI" or "\\" not in e.text}

    async def _holding(
        self, level: str, matches: list[dict[int, str]], keys: dict[int, Element]
    ) -> list[dict[int, str]]:
        """The matches below which something has these keys."""
        levels = levels_of(self._model)
        held = []
        for match in matches:
            query = Identifier(dict(keys))
            query.put(QUERY_RETRIEVE_LEVEL, levels[levels.index(level) + 1], "CS")
            for name in levels[: levels.index(level) + 1]:
                if UNIQUE_KEYS[name] in match:
                    query.put(UNIQUE_KEYS[name], match[UNIQUE_KEYS[name]], vr_of(UNIQUE_KEYS[name]))
            try:
                if await self.matches(query):
                    held.append(match)
            except FindFailed as error:
                self._console.warn(f"warning: {error}; more may come than was meant")
                return matches
        return held

    async def split(self, units: list[Identifier], parts: int) -> list[Identifier]:
        """The units in at least `parts` smaller ones, as far as there are levels below."""
        levels = levels_of(self._model)
        while units and len(units) < parts:
            level = level_of(units[0])
            if level not in levels or level == levels[-1]:
                break
            lower = levels[levels.index(level) + 1]
            matches = [match for unit in units for match in await self._below(unit, lower)]
            # Instances are dealt out in lists, so that there are not more requests than needed.
            size = max(1, -(-len(matches) // parts)) if lower == "IMAGE" else 1
            smaller = retrieve_identifiers(self._model, lower, matches, uids_max=size)
            if not smaller:
                break
            units = smaller
        return units

    async def _below(self, unit: Identifier, level: str) -> list[dict[int, str]]:
        """The unique keys of what lies one level below a unit."""
        found = []
        for single in self._singles(unit):
            single.put(QUERY_RETRIEVE_LEVEL, level, "CS")
            found += await self.matches(single)
        return found

    def _singles(self, unit: Identifier) -> list[Identifier]:
        """A unit with a list of UIDs as units of one each: the levels above a query are single."""
        key = UNIQUE_KEYS[level_of(unit)]
        singles = []
        for value in unit.text(key).split("\\"):
            single = unit.copy()
            single.put(key, value, unit.elements[key].vr)
            singles.append(single)
        return singles

    async def instances(self, units: Sequence[Identifier]) -> list[frozenset[str] | None]:
        """The SOP Instance UIDs of each unit; None where `listed` does not know them."""
        known: list[frozenset[str] | None] = []
        for unit in units:
            if level_of(unit) == "IMAGE":
                known.append(frozenset(unit.text(UNIQUE_KEYS["IMAGE"]).split("\\")))
                continue
            try:
                listed = await self.listed(unit)
            except FindFailed as error:
                self._console.warn(f"warning: {error}; what is to come is not known beforehand")
                listed = None
            # A peer that lists nothing of what it has found may not answer at that level.
            known.append(frozenset().union(*listed.values()) if listed else None)
        return known

    async def listed(self, unit: Identifier) -> dict[str, dict[str, ExpectedInstance]] | None:
        """The instances of a unit as the peer lists them, by Study and SOP Instance UID.

        None where they cannot be known, or would take too many questions.
        """
        levels = levels_of(self._model)
        level = level_of(unit)
        if level not in levels or "IMAGE" not in levels:
            return None
        if level == "IMAGE":
            return await self._listed_images(unit)
        lower = levels[levels.index(level) + 1]
        self._listings_left -= len(unit.text(UNIQUE_KEYS[level]).split("\\"))
        if self._listings_left < 0:
            return None
        matches = await self._below(unit, lower) if lower != "IMAGE" else None
        if matches is None:
            parts = self._singles(unit)
            for part in parts:
                part.put(QUERY_RETRIEVE_LEVEL, "IMAGE", "CS")
        else:
            if not all(match.get(UNIQUE_KEYS[lower]) for match in matches):
                return None
            parts = retrieve_identifiers(self._model, lower, matches)
        found: dict[str, dict[str, ExpectedInstance]] = {}
        for part in parts:
            below = await self.listed(part)
            if below is None:
                return None
            for study, instances in below.items():
                found.setdefault(study, {}).update(instances)
        return found

    async def _listed_images(self, unit: Identifier) -> dict[str, dict[str, ExpectedInstance]]:
        study, series, instance = (UNIQUE_KEYS[name] for name in ("STUDY", "SERIES", "IMAGE"))
        query = unit.copy()
        for tag in (_SOP_CLASS, _AVAILABLE_TRANSFER_SYNTAX):
            query.put(tag, "", "UI")
        query.elements.setdefault(instance, Element(instance, "UI", ""))
        found: dict[str, ExpectedInstance] = {}
        for dataset in await self.ask(query):
            [uid, *_] = _uids(dataset, instance) or [""]
            if uid:
                syntaxes = _uids(dataset, _AVAILABLE_TRANSFER_SYNTAX)
                found[uid] = ExpectedInstance(
                    sop_instance_uid=uid,
                    sop_class_uid=storage_class("".join(_uids(dataset, _SOP_CLASS))),
                    series_instance_uid=unit.text(series),
                    transfer_syntax_uid=syntaxes[0] if len(syntaxes) == 1 else "",
                )
        return {unit.text(study): found} if found else {}

    async def sop_classes(self, units: Sequence[Identifier]) -> list[str]:
        """The SOP classes of what the units hold; the common ones too where that cannot be known."""
        classes: dict[str, None] = {}
        asked = 0
        for unit in units:
            if level_of(unit) == "IMAGE":
                classes |= await self._classes_of_images(unit)
                continue
            studies = await self.ask(_study_question(unit))
            if not studies:
                return [*classes, *COMMON_CLASSES]
            for dataset in studies:
                told = _uids(dataset, _SOP_CLASSES_IN_STUDY)
                classes |= dict.fromkeys(told)
                if told:
                    continue
                if "IMAGE" not in levels_of(self._model):
                    return [*classes, *COMMON_CLASSES]
                for series in await self._series_of(unit, dataset):
                    asked += 1
                    if asked > SERIES_ASKED_MAX:
                        return [*classes, *COMMON_CLASSES]
                    series.put(QUERY_RETRIEVE_LEVEL, "IMAGE", "CS")
                    classes |= await self._classes_of_images(series)
        return list(classes) or list(COMMON_CLASSES)

    async def _series_of(self, unit: Identifier, study: Dataset) -> list[Identifier]:
        """The series of a study that belong to the unit, one an identifier."""
        keys = unique_keys_of(unit) | unique_keys(study)
        if level_of(unit) == "SERIES":
            key = UNIQUE_KEYS["SERIES"]
            matches = [keys | {key: value} for value in unit.text(key).split("\\")]
        else:
            [whole] = retrieve_identifiers(self._model, "STUDY", [keys])
            matches = await self._below(whole, "SERIES")
        return retrieve_identifiers(self._model, "SERIES", matches, uids_max=1)

    async def _classes_of_images(self, unit: Identifier) -> dict[str, None]:
        query = unit.copy()
        query.put(_SOP_CLASS, "", "UI")
        instance = UNIQUE_KEYS["IMAGE"]
        if instance not in query.elements:
            query.put(instance, "", "UI")
        return dict.fromkeys(
            uid for dataset in await self.ask(query) for uid in _uids(dataset, _SOP_CLASS)
        )


def _study_question(unit: Identifier) -> Identifier:
    """The C-FIND for the SOP Classes in Study (0008,0062) of the studies of a unit."""
    query = unit.copy()
    query.put(QUERY_RETRIEVE_LEVEL, "STUDY", "CS")
    query.elements.pop(UNIQUE_KEYS["SERIES"], None)
    if UNIQUE_KEYS["STUDY"] not in query.elements:
        query.put(UNIQUE_KEYS["STUDY"], "", "UI")
    query.put(_SOP_CLASSES_IN_STUDY, "", "UI")
    return query


def _names(*tags: Iterable[int]) -> str:
    """Attributes as they are typed."""
    named = sorted({tag for some in tags for tag in some})
    return ", ".join(
        keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in named
    )


def unique_keys_of(identifier: Identifier) -> dict[int, str]:
    """The unique keys that have a value, by tag."""
    return {tag: text for tag in UNIQUE_KEYS.values() if (text := identifier.text(tag))}


def _uids(dataset: Dataset, tag: int) -> list[str]:
    element = dataset.get(tag)
    if element is None or not element.value:
        return []
    values = element.value if not isinstance(element.value, str) else [element.value]
    return [text for value in values if (text := str(value).strip(" \0"))]
