"""What `get` and `move` ask before they retrieve, of peers that match what they like."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pydicom.dataset import Dataset

from dcmhaul import uids
from dcmhaul.cli import main
from dcmhaul.cli.completion import UNIQUE_KEYS
from dcmhaul.cli.console import Console
from dcmhaul.cli.keys import build_identifier
from dcmhaul.cli.retrieval import FindFailed, Questioner
from dcmhaul.net import open_association
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.identifiers import QueryRefused
from dcmhaul.services.query import FindScp, QueryModel
from dcmhaul.wire.items import PresentationContextRq
from tests.archive.made import instance
from tests.archive.serving import AE_TITLE
from tests.archive.serving import serving as archive_serving
from tests.archive.test_archive import store
from tests.net.conversation import EXPLICIT, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

# Patient, study, series, modality.
HELD = [
    ("HEAD^ONE", "1", "1.1", "CT"),
    ("HEAD^ONE", "1", "1.2", "MR"),
    ("HEAD^TWO", "2", "2.1", "CT"),
    ("FOOT", "3", "3.1", "CT"),
]


class Scp:
    """Matches what `matched` names at each level, and answers it as `shown` says."""

    def __init__(
        self, *, relational: bool = False, strict: bool = False, shown: str = "real"
    ) -> None:
        self.relational = relational
        self.strict = strict
        self.shown = shown
        self.levels: list[str] = []

    def find(self, _model: QueryModel, asked: Dataset, _calling: str) -> Iterator[Dataset]:
        level = str(asked.QueryRetrieveLevel)
        self.levels.append(level)
        if self.strict and level == "SERIES" and not asked.get("StudyInstanceUID"):
            raise QueryRefused(0xA900, "no unique key above SERIES")
        seen = set()
        for name, study, series, modality in HELD:
            values = {"PatientName": name, "StudyInstanceUID": study}
            matched = ["StudyInstanceUID"]
            if level == "STUDY" or self.relational:
                matched.append("PatientName")
            if level == "SERIES":
                values |= {"SeriesInstanceUID": series, "Modality": modality}
                matched += ["SeriesInstanceUID", "Modality"]
            if not all(_fits(asked.get(key), values[key]) for key in matched):
                continue
            if self.shown != "real" and level == "SERIES":
                values["PatientName"] = str(asked.get("PatientName", "")) * (self.shown == "echo")
            match = Dataset()
            match.QueryRetrieveLevel = level
            for keyword, value in values.items():
                if keyword in asked:
                    setattr(match, keyword, value)
            if str(match) not in seen:
                seen.add(str(match))
                yield match


def _fits(key: Any, value: str) -> bool:
    if not key:
        return True
    if not isinstance(key, str) and hasattr(key, "__len__") and not hasattr(key, "family_name"):
        return value in [str(one) for one in key]
    text = str(key)
    return value.startswith(text[:-1]) if text.endswith("*") else value == text


@asynccontextmanager
async def asking(scp: Scp) -> AsyncIterator[Questioner]:
    context = PresentationContextRq(
        context_id=1, abstract_syntax=uids.STUDY_ROOT_FIND, transfer_syntaxes=(EXPLICIT,)
    )
    request = AssociationRequest(
        called_ae_title="THERE", calling_ae_title="HERE", contexts=(context,)
    )
    async with (
        serving(FindScp(scp.find, models=QueryModel)) as port,
        open_association("127.0.0.1", port, request) as association,
    ):
        yield Questioner(association, "study", Console())


async def series(questioner: Questioner, *typed: str, level: str = "SERIES") -> list[str]:
    identifier = build_identifier([f"QueryRetrieveLevel={level}", *typed])
    matches = await questioner.matches(identifier)
    key = UNIQUE_KEYS[level]
    assert all(match[UNIQUE_KEYS["STUDY"]] == match[key][:1] for match in matches)
    return sorted(match[key] for match in matches)


NAMED = ["1.1", "1.2", "2.1"]


@pytest.mark.parametrize(
    ("scp", "asked"),
    [
        (Scp(relational=True), ["SERIES"]),
        (Scp(), ["SERIES", "STUDY", "SERIES", "SERIES"]),
        (Scp(strict=True), ["SERIES", "STUDY", "SERIES", "SERIES"]),
        (Scp(shown="nothing"), ["SERIES", "STUDY", "SERIES", "SERIES"]),
        (Scp(shown="echo"), ["SERIES", "STUDY", "SERIES", "SERIES"]),
    ],
    ids=["relational", "hierarchical", "strict", "shows nothing", "echoes"],
)
async def test_a_name_above_the_level(
    scp: Scp, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One question where the peer answers it; else level by level, and never another patient's."""
    async with asking(scp) as questioner:
        assert await series(questioner, "PatientName=HEAD*") == NAMED
    assert scp.levels == asked
    err = capsys.readouterr().err
    assert err.count("asked level by level") == (len(asked) > 1)
    assert "HEAD" not in err


async def test_keys_of_the_level_go_with_it() -> None:
    scp = Scp()
    async with asking(scp) as questioner:
        assert await series(questioner, "PatientName=HEAD*", "Modality=CT") == ["1.1", "2.1"]
        assert await series(questioner, "PatientName=FOOT", "StudyInstanceUID=1") == []
        assert await series(questioner, "PatientName=HEAD*", "SeriesInstanceUID=1.2") == ["1.2"]


async def test_a_list_of_studies_that_finds_nothing_is_asked_for_one_by_one() -> None:
    """A strictly hierarchical peer takes no lists above the level that it is asked at."""
    scp = Scp()
    inner = scp.find

    def find(model: QueryModel, asked: Dataset, calling: str) -> Iterator[Dataset]:
        listed = not isinstance(asked.get("StudyInstanceUID", ""), str)
        found = inner(model, asked, calling)
        return iter(()) if listed and asked.QueryRetrieveLevel == "SERIES" else found

    scp.find = find  # type: ignore[method-assign, assignment]
    async with asking(scp) as questioner:
        assert await series(questioner, "StudyInstanceUID=1\\3") == ["1.1", "1.2", "3.1"]
        assert await series(questioner, "StudyInstanceUID=1") == ["1.1", "1.2"]


async def test_what_contradicts_the_keys_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    scp = Scp()
    inner = scp.find

    def careless(model: QueryModel, asked: Dataset, calling: str) -> Iterator[Dataset]:
        asked.Modality = ""
        return inner(model, asked, calling)

    scp.find = careless  # type: ignore[method-assign, assignment]
    async with asking(scp) as questioner:
        assert await series(questioner, "Modality=MR", "StudyInstanceUID=1") == ["1.2"]
    err = capsys.readouterr().err
    assert "matches at SERIES level whose Modality is not what was typed are left out" in err


@pytest.mark.parametrize("typed", ["ModalitiesInStudy=MR", "Modality=MR", "Modality=M?"])
async def test_studies_are_told_apart_by_their_series(
    typed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the peer does not match at STUDY level is asked for below each study."""
    scp = Scp()
    inner = scp.find

    def find(model: QueryModel, asked: Dataset, calling: str) -> Iterator[Dataset]:
        if str(asked.get("Modality", "")) == "M?":
            asked.Modality = "MR"
        return inner(model, asked, calling)

    scp.find = find  # type: ignore[method-assign, assignment]
    async with asking(scp) as questioner:
        assert await series(questioner, typed, level="STUDY") == ["1"]
    assert scp.levels == ["STUDY", *["SERIES"] * 3]
    assert capsys.readouterr().err == ""


async def test_a_level_below_that_cannot_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    scp = Scp()
    inner = scp.find

    def find(model: QueryModel, asked: Dataset, calling: str) -> Iterator[Dataset]:
        if asked.QueryRetrieveLevel == "SERIES":
            raise QueryRefused(0xA900, "studies alone")
        return inner(model, asked, calling)

    scp.find = find  # type: ignore[method-assign, assignment]
    async with asking(scp) as questioner:
        assert await series(questioner, "Modality=MR", level="STUDY") == ["1", "2", "3"]
    assert "(studies alone); more may come than was meant" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["ModalitiesInStudy=MR\\PR", "StudyDescription=MR", "Rows=512"])
async def test_what_the_peer_says_nothing_of_is_a_warning(
    typed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with asking(Scp()) as questioner:
        assert await series(questioner, typed, level="STUDY") == ["1", "2", "3"]
    text = f"the peer does not show that it matches {typed.partition('=')[0]} at STUDY level"
    assert text in capsys.readouterr().err


async def test_a_refusal_that_no_other_question_mends() -> None:
    async with asking(Scp(strict=True)) as questioner:
        with pytest.raises(FindFailed, match="0xA900") as refused:
            await series(questioner, "SeriesInstanceUID=1.1")
    assert refused.value.exit_code == 6


async def test_our_archive_is_asked_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with archive_serving(tmp_path / "archive") as served:
        for number in (1, 2):
            assert (await store(served.archive, instance(number))).status == 0
        words = ["get", f"{AE_TITLE}@127.0.0.1:{served.port}", "-S", "-k", "PatientName=Doe^John2"]
        words += ["-k", "QueryRetrieveLevel=SERIES", "-od", str(tmp_path / "got"), "-d"]
        with trio.fail_after(30):
            assert await trio.to_thread.run_sync(main, words) == 0
    assert [path.name for path in (tmp_path / "got").iterdir()] == ["1.2.3.2.1.1.dcm"]
    assert "asked level by level" not in capsys.readouterr().err
