"""Exit codes: of errors, of statuses, and which of several wins."""

from __future__ import annotations

import itertools

import pytest

from dcmhaul.cli.exits import Exit, for_error, for_status, worst
from dcmhaul.errors import (
    AssociationAborted,
    AssociationRejected,
    ConfigurationError,
    DcmhaulError,
    LocalProtocolError,
    NoAcceptedContext,
    NotDicom,
    PeerTimeout,
    RemoteProtocolError,
    TransportError,
    UnreadableInstance,
)

# The order of the contract.
ORDER = [130, 2, 3, 7, 11, 6, 5, 8, 10, 99, 4]


def test_the_first_of_the_order_wins() -> None:
    for first, second in itertools.combinations(ORDER, 2):
        assert worst([second, 0, first]) == first


def test_nothing_is_success() -> None:
    assert worst([]) == 0
    assert worst([0, 0]) == 0


def test_a_fault_of_ours_does_not_hide() -> None:
    assert worst([0, 1]) == 1
    assert worst([4, 1]) == 1
    assert worst([130, 1]) == 130


@pytest.mark.parametrize(
    ("error", "before", "begun"),
    [
        (KeyboardInterrupt(), 130, 130),
        (ConfigurationError("x"), 2, 2),
        (TransportError("x"), 3, 5),
        (AssociationAborted(0, 0, "x"), 3, 5),
        (RemoteProtocolError("x"), 3, 5),
        (AssociationRejected(1, 1, 7, "x"), 3, 3),
        (NoAcceptedContext("x"), 3, 3),
        (PeerTimeout("connect", 10), 3, 5),
        (PeerTimeout("association", 30), 3, 5),
        (PeerTimeout("C-STORE response", 60), 5, 5),
        (PeerTimeout("progress", 30), 5, 5),
        (UnreadableInstance("x"), 6, 6),
        (NotDicom("x"), 6, 6),
        (LocalProtocolError("x"), 1, 1),
        (DcmhaulError("x"), 1, 1),
        (KeyError("x"), 1, 1),
    ],
)
def test_errors(error: BaseException, before: int, begun: int) -> None:
    assert for_error(error) == before
    assert for_error(error, begun=True) == begun


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (0x0000, 0),
        (0xB000, 0),
        (0xB006, 0),
        (0xB007, 0),
        (0xA700, 5),
        (0xA701, 5),
        (0xA702, 5),
        (0xA801, 6),
        (0xA900, 6),
        (0xC000, 6),
        (0xC123, 6),
        (0x0110, 6),
        (0x0122, 6),
        (0x0211, 6),
        (0xB100, 6),
        (0xFFFF, 6),
        (0xFF00, 6),
        (0xFE00, 5),
    ],
)
def test_statuses(status: int, code: int) -> None:
    assert for_status(status) == code


def test_the_names_are_the_numbers() -> None:
    assert {int(code) for code in Exit} == {*ORDER, 0, 1}
