"""The pure parts of a migration: identity, contexts, requests, what outcomes mean, the exit code."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pydicom import Dataset

from dcmhaul.config import Peer
from dcmhaul.engine.planning import (
    COMMON_TRANSFER_SYNTAXES,
    STORAGE_CONTEXTS_MAX,
    WIDE_PASSES,
    ExpectedInstance,
    choose_contexts,
    context_passes,
    plan_requests,
    retrieve_identifier,
)
from dcmhaul.engine.relay import RelayOutcome
from dcmhaul.engine.retriever import GetResult
from dcmhaul.engine.retry import RetryPolicy
from dcmhaul.errors import (
    AssociationAborted,
    ConfigurationError,
    NoAcceptedContext,
    TransportError,
)
from dcmhaul.migrate.plan import (
    MigrateOptions,
    changed,
    check_filter,
    default_ledger_url,
    identity,
    job_name,
)
from dcmhaul.migrate.report import MigrationSummary, exit_code
from dcmhaul.migrate.study import Next, StudyWork, make_work
from dcmhaul.migrate.tables import InstanceRow, InstanceState, StudyState
from dcmhaul.migrate.verify import compare
from dcmhaul.uids import STORAGE_SOP_CLASSES

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"

OLD = Peer(host="old.example", port=104, ae_title="OLD")
NEW = Peer(host="new.example", port=104, ae_title="NEW", name="new")


def options(**more: object) -> MigrateOptions:
    fields = {"source": OLD, "destination": NEW, "ledger_url": "sqlite:///x.db", **more}
    return MigrateOptions(**fields)  # type: ignore[arg-type]


def keys(**values: str) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


# -- identity -------------------------------------------------------------------------------------------


def test_a_made_name_depends_on_all_three_parts() -> None:
    names = {
        job_name(options()),
        job_name(options(destination=Path("/backup"))),
        job_name(options(source=NEW, destination=OLD)),
        job_name(options(filter=keys(StudyDate="20150101"))),
        job_name(options(filter=keys(StudyDate="20160101"))),
    }
    assert len(names) == 5
    assert job_name(options()) == job_name(options(associations=9, verify="none"))
    assert job_name(options()).startswith("OLD-new-")


@pytest.mark.parametrize("name", ["verify", "pause", "", "a b", "../x", "x" * 65])
def test_names_that_a_job_cannot_have(name: str) -> None:
    with pytest.raises(ConfigurationError):
        job_name(options(job=name))


def test_what_changed_is_named_and_no_value_of_a_patient() -> None:
    first = identity(options(filter=keys(StudyDate="20150101", PatientID="secret")))
    second = identity(options(source=NEW, filter=keys(StudyDate="20160101", PatientID="secret")))
    (source, selection) = changed(first, second)
    assert source == "source was OLD@old.example:104, now NEW@new.example:104"
    assert "StudyDate=20150101" in selection
    assert "StudyDate=20160101" in selection
    assert "secret" not in selection
    other = identity(options(filter=keys(StudyDate="20150101", PatientID="another")))
    assert len(changed(first, other)) == 1
    assert "another" not in changed(first, other)[0]
    assert changed(first, first) == []


def test_keys_below_study_level_and_sequences_are_refused() -> None:
    check_filter(keys(StudyDate="20150101", PatientName="A*", ModalitiesInStudy="CT"))
    with pytest.raises(ConfigurationError, match="SOPInstanceUID"):
        check_filter(keys(SOPInstanceUID="1.2"))
    sequence = Dataset()
    sequence.ReferencedStudySequence = [Dataset()]
    with pytest.raises(ConfigurationError, match="sequence"):
        check_filter(sequence)


def test_where_the_ledger_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCMHAUL_LEDGER", "sqlite:////srv/l.db")
    assert default_ledger_url() == "sqlite:////srv/l.db"
    monkeypatch.delenv("DCMHAUL_LEDGER")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_ledger_url() == "sqlite:////data/dcmhaul/ledger.db"


# -- contexts -------------------------------------------------------------------------------------------


def test_announced_syntaxes_are_proposed_alone_and_doubted_ones_with_the_common_ones() -> None:
    assert context_passes({CT: 2}, {CT: [EXPLICIT, EXPLICIT]}) == [((CT, EXPLICIT),)]
    (pairs,) = context_passes({CT: 2}, {})
    assert [syntax for _, syntax in pairs] == list(COMMON_TRANSFER_SYNTAXES)
    (pairs,) = context_passes({CT: 2}, {CT: ["1.2.3"]}, doubted={CT})
    assert pairs[0] == (CT, "1.2.3")
    assert len(pairs) == 1 + len(COMMON_TRANSFER_SYNTAXES)


def test_the_commonest_class_comes_first_and_none_is_split_without_need() -> None:
    passes = context_passes({"1.1": 1, "1.2": 9, "1.3": 5}, {}, limit=40)
    assert [Counter(sop_class for sop_class, _ in pairs) for pairs in passes] == [
        {"1.2": 18, "1.3": 18},
        {"1.1": 18},
    ]
    passes = context_passes({"1.1": 1}, {"1.1": [f"1.9.{n}" for n in range(25)]}, limit=10)
    assert [len(pairs) for pairs in passes] == [10, 10, 5]


def test_a_class_that_is_not_named_is_guessed() -> None:
    (pairs,) = context_passes({"": 3}, {})
    assert (CT, EXPLICIT) in pairs
    assert (MR, EXPLICIT) in pairs
    assert len(pairs) <= 127


def test_popular_pairs_fill_what_is_left() -> None:
    needed = [(CT, EXPLICIT)]
    assert choose_contexts(needed, [(MR, EXPLICIT), (CT, EXPLICIT)], limit=5) == (
        (CT, EXPLICIT),
        (MR, EXPLICIT),
    )
    assert choose_contexts(needed, [(MR, EXPLICIT)], limit=1) == ((CT, EXPLICIT),)


# -- requests -------------------------------------------------------------------------------------------


def expected(uid: str, series: str = "2.1", **more: str) -> ExpectedInstance:
    return ExpectedInstance(
        sop_instance_uid=uid, sop_class_uid=more.pop("sop_class", CT), series_instance_uid=series
    )


STUDY = [expected("9.1"), expected("9.2"), expected("9.3", "2.2"), expected("9.4", "2.2")]


def levels(wanted: set[str], study: list[ExpectedInstance] = STUDY) -> list[tuple[str, int]]:
    return [(r.level, len(r.sop_instance_uids)) for r in plan_requests("1.1", study, wanted)]


def test_the_fewest_requests_that_bring_what_is_wanted() -> None:
    assert levels({"9.1", "9.2", "9.3", "9.4"}) == [("STUDY", 0)]
    assert levels({"9.3", "9.4"}) == [("SERIES", 0)]
    assert levels({"9.1", "9.3", "9.4"}) == [("IMAGE", 1), ("SERIES", 0)]
    assert levels(set()) == []
    assert levels({"9.1"}, [expected("9.1", ""), expected("9.2", "")]) == [("STUDY", 0)]
    many = [expected(f"9.{n}") for n in range(600)]
    assert levels({f"9.{n}" for n in range(599)}, many) == [
        ("IMAGE", 256),
        ("IMAGE", 256),
        ("IMAGE", 87),
    ]


def test_the_identifier_has_the_unique_keys_down_to_its_level() -> None:
    (request,) = plan_requests("1.1", STUDY, {"9.1"})
    identifier = retrieve_identifier(request)
    assert identifier.QueryRetrieveLevel == "IMAGE"
    assert (identifier.StudyInstanceUID, identifier.SeriesInstanceUID) == ("1.1", "2.1")
    assert identifier.SOPInstanceUID == "9.1"
    assert "SeriesInstanceUID" not in retrieve_identifier(
        plan_requests("1.1", STUDY, {"9.1", "9.2", "9.3", "9.4"})[0]
    )


# -- what outcomes mean ---------------------------------------------------------------------------------


def work(*uids: str, states: dict[str, InstanceState] | None = None) -> StudyWork:
    rows = [
        InstanceRow(expected=expected(uid), state=(states or {}).get(uid, InstanceState.SEEN))
        for uid in uids
    ]
    return make_work(7, "1.1", rows, RetryPolicy())


def outcome(uid: str, status: int | None = None, **more: object) -> RelayOutcome:
    fields = {
        "sop_class_uid": CT,
        "sop_instance_uid": uid,
        "transfer_syntax_uid": EXPLICIT,
        "status": status,
        "length": 10,
        **more,
    }
    return RelayOutcome(**fields)  # type: ignore[arg-type]


def test_only_what_has_no_final_state_is_open() -> None:
    study = work(
        "1",
        "2",
        "3",
        "4",
        "5",
        states={
            "2": InstanceState.ACKED,
            "3": InstanceState.FAILED,
            "4": InstanceState.EXCLUDED,
            "5": InstanceState.IDENTICAL_PRESENT,
        },
    )
    assert (study.open, study.held) == ({"1", "3"}, {"2", "5"})
    assert study.next is Next.TRANSFER


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB007])
def test_a_stored_instance_is_acknowledged_once(status: int) -> None:
    study = work("1")
    result = study.fold(outcome("1", status, sha256=b"x"))
    assert result is not None
    assert (result.state, result.length, result.sha256) == (InstanceState.ACKED, 10, b"x")
    assert study.fold(outcome("1", status)) is None
    assert (study.next, study.closing_state) == (Next.CLOSE, StudyState.DONE)


@pytest.mark.parametrize(("status", "tries"), [(0xA700, 3), (0xA900, 2), (0xC001, 2), (0x0122, 1)])
def test_refusals_are_tried_as_often_as_it_makes_sense(status: int, tries: int) -> None:
    study = work("1")
    for _ in range(tries - 1):
        assert study.fold(outcome("1", status, error_comment="why")) is None
        assert study.next is Next.TRANSFER
        assert study.delay_seconds > 0
    result = study.fold(outcome("1", status, error_comment="why"))
    assert result is not None
    assert (result.state, result.status) == (InstanceState.FAILED, status)
    assert result.retryable == (status == 0xA700)
    assert result.comment is not None
    assert result.comment.startswith(f"0x{status:04X} ")
    assert result.comment.endswith(": why")
    assert (study.next, study.closing_state) == (Next.CLOSE, StudyState.PARTIAL)


def test_a_lost_answer_is_asked_for_before_anything_else() -> None:
    study = work("1", "2")
    lost = AssociationAborted(0, 0, "gone")
    assert study.fold(outcome("1", error=lost, unknown=True)) is None
    assert study.next is Next.ASK
    (result,) = study.present({"1", "unrelated"})
    assert (result.sop_instance_uid, result.state) == ("1", InstanceState.IDENTICAL_PRESENT)
    assert (study.open, study.next) == ({"2"}, Next.TRANSFER)


def test_an_answer_that_is_lost_again_and_again_is_a_failure_only_after_asking() -> None:
    study = work("1")
    for _ in range(3):
        assert study.fold(outcome("1", error=TransportError("gone"), unknown=True)) is None
        assert study.next is Next.ASK
        results = study.present(())
    (result,) = results
    assert (result.state, result.retryable) == (InstanceState.FAILED, True)


def test_no_context_is_final_at_once() -> None:
    study = work("1")
    result = study.fold(outcome("1", error=NoAcceptedContext("none")))
    assert result is not None
    assert (result.state, result.retryable) == (InstanceState.FAILED, False)


def test_what_did_not_come_is_asked_for_once_more() -> None:
    study = work("1", "2")
    ended = GetResult(status=0x0000, received={"1"})
    assert study.not_delivered({"1", "2"}, ended) == []
    (result,) = study.not_delivered({"1", "2"}, ended)
    assert result.sop_instance_uid == "2"
    assert "0x0000" in (result.comment or "")


@pytest.mark.parametrize("status", [0xB000, 0xA702])
def test_what_the_source_could_not_send_is_asked_for_in_every_class(status: int) -> None:
    study = work("1", "2")
    study.fold(outcome("1", 0))
    failed = GetResult(status=status)
    asked: list[tuple[tuple[str, str], ...]] = []
    while study.open:
        assert study.not_delivered({"2"}, failed) == [] or not study.open
        if study.open:
            asked += study.contexts()
            assert study.covered(asked[-1]) == {"2"}
    assert asked[1:] == list(
        WIDE_PASSES
    )  # after one with every common syntax of the class it named
    proposed = {sop_class for pairs in asked for sop_class, _ in pairs}
    assert proposed == set(STORAGE_SOP_CLASSES)
    assert all(len(pairs) <= STORAGE_CONTEXTS_MAX for pairs in asked)
    assert study.failed == {"2"}
    assert f"0x{status:04X}" in study.reasons["2"][2]


def test_a_wide_pass_that_an_end_does_not_take_leads_to_the_next() -> None:
    study = work("1")
    for _ in range(2):
        study.not_delivered({"1"}, GetResult(status=0xB000))
    seen = []
    while study.open:
        seen += study.contexts()
        study.no_context(study.covered(seen[-1]), "the destination")
    assert seen == list(WIDE_PASSES)
    assert "did not send it" in study.reasons["1"][2]


def test_what_is_doubtful_waits_for_the_others() -> None:
    study = work("1", "2")
    for _ in range(2):
        study.not_delivered({"1"}, GetResult(status=0xB000))
    (pairs,) = study.contexts()
    assert {sop_class for sop_class, _ in pairs} == {CT}
    assert study.covered(pairs) == {"2"}


def test_losses_in_a_row_give_a_study_up_and_an_acknowledgement_starts_anew() -> None:
    study = work("1", "2")
    gone = TransportError("gone")
    assert study.lost(gone) == []
    assert study.lost(gone) == []
    study.fold(outcome("1", 0))
    assert study.lost(gone) == []
    assert study.lost(gone) == []
    (result,) = study.lost(gone)
    assert (result.sop_instance_uid, result.comment) == ("2", "gone")


def test_what_was_not_in_the_inventory_gets_a_row() -> None:
    study = work("1")
    result = study.fold(outcome("new", 0))
    assert result is not None
    assert [instance.sop_instance_uid for instance in study.extra] == ["new"]
    assert study.held == {"new"}


# -- the end --------------------------------------------------------------------------------------------


def test_sets_are_compared_not_numbers() -> None:
    assert compare("uids", {"1", "2"}, {"1", "2", "3"}) is None
    difference = compare("uids", {"1", "2"}, {"1", "3"})
    assert difference is not None
    assert difference.missing == ("2",)
    assert compare("count", {"1", "2"}, {"1", "3"}) is None
    assert compare("count", {"1", "2"}, {"1"}) is not None
    assert compare("none", {"1"}, set()) is None


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, 0),
        ({"studies": 0}, 4),
        ({"failed": 1, "failed_retryable": 1}, 5),
        ({"failed": 2, "failed_retryable": 1}, 6),
        ({"pending": 1}, 5),
        ({"pending": 1, "dry_run": True}, 0),
        ({"error": "the destination is gone"}, 5),
        ({"failed": 1, "differing": 1}, 11),
        ({"unverified": 1}, 11),
        ({"interrupted": True, "differing": 1}, 130),
    ],
)
def test_the_gravest_cause_decides_the_exit_code(fields: dict[str, object], code: int) -> None:
    base: dict[str, object] = {
        "job": "j",
        "source": "a",
        "destination": "b",
        "verify": "uids",
        "studies": 1,
    }
    summary = MigrationSummary(**{**base, **fields})  # type: ignore[arg-type]
    assert exit_code(summary) == summary.exit_code == code
    assert summary.as_dict()["exit_code"] == code
