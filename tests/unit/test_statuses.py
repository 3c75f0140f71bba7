"""Statuses: category by service, and one line for each."""

from __future__ import annotations

import pytest

from dcmhaul.protocol.statuses import StatusCategory, category, describe, is_performed

SUCCESS, WARNING, PENDING, CANCEL, FAILURE = StatusCategory


@pytest.mark.parametrize(
    ("status", "service", "expected"),
    [
        (0x0000, "C-STORE", SUCCESS),
        (0xB000, "C-STORE", WARNING),
        (0xB006, "C-STORE", WARNING),
        (0xB007, "C-STORE", WARNING),
        (0xB0FF, "C-STORE", WARNING),
        (0xB100, "C-STORE", FAILURE),
        (0xAFFF, "C-STORE", FAILURE),
        (0xA700, "C-STORE", FAILURE),
        (0xA900, "C-STORE", FAILURE),
        (0xC001, "C-STORE", FAILURE),
        (0x0117, "C-STORE", FAILURE),
        (0x0107, "C-STORE", FAILURE),
        (0xFF00, "C-STORE", FAILURE),
        (0xFE00, "C-STORE", FAILURE),
        (0xFFFF, "C-STORE", FAILURE),
        (0xFF00, "C-FIND", PENDING),
        (0xFF01, "C-FIND", PENDING),
        (0xFE00, "C-FIND", CANCEL),
        (0xB000, "C-FIND", FAILURE),
        (0xA700, "C-FIND", FAILURE),
        (0xFF00, "C-GET", PENDING),
        (0xFF01, "C-GET", FAILURE),
        (0xB000, "C-GET", WARNING),
        (0xB001, "C-GET", FAILURE),
        (0xA702, "C-MOVE", FAILURE),
        (0xB000, "C-MOVE", WARNING),
        (0x0000, "C-ECHO", SUCCESS),
        (0xB000, "C-ECHO", FAILURE),
        (0x0107, "N-SET", WARNING),
        (0x0116, "N-CREATE", WARNING),
        (0x0001, "N-GET", WARNING),
        (0xB304, "UPS", WARNING),
        (0xC307, "UPS", FAILURE),
        (0x0110, "MPPS", FAILURE),
        (0xFF00, "N-GET", FAILURE),
    ],
)
def test_category(status: int, service: str, expected: StatusCategory) -> None:
    assert category(status, service) is expected


def test_the_service_is_storage_unless_named() -> None:
    assert category(0xB007) is WARNING
    assert describe(0xB007) == "0xB007 Warning: data set does not match SOP class"


@pytest.mark.parametrize(
    ("status", "service", "words"),
    [
        (0xA7FF, "C-STORE", "out of resources"),
        (0xA900, "C-FIND", "identifier"),
        (0xA900, "C-STORE", "data set"),
        (0xA801, "C-MOVE", "destination unknown"),
        (0xA801, "C-GET", "does not define"),
        (0xA702, "C-MOVE", "sub-operations"),
        (0x0122, "C-FIND", "SOP class not supported"),
        (0x0211, "N-GET", "Unrecognized operation"),
        (0x0110, "MPPS", "no longer be updated"),
        (0x0131, "STORAGE-COMMITMENT", "Duplicate transaction UID"),
        (0xC302, "UPS", "IN PROGRESS"),
        (0xFFFF, "C-STORE", "no status"),
        (0x7777, "C-ECHO", "C-ECHO does not define"),
    ],
)
def test_describe(status: int, service: str, words: str) -> None:
    line = describe(status, service)
    assert line.startswith(f"0x{status:04X} ")
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB007, 0xB0FF])
def test_every_sub_operation_was_tried(status: int) -> None:
    assert is_performed(status)


@pytest.mark.parametrize("status", [0x0001, 0xA702, 0xB100, 0xC000, 0xFE00, 0xFF00])
def test_not_every_sub_operation_was_tried(status: int) -> None:
    assert not is_performed(status)
