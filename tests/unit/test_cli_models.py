"""Matches as `find` prints them."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom import dcmread

from dcmhaul.cli.models import json_object, quiet_pydicom


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydicom.config.settings._reading_validation_mode", None)
    quiet_pydicom()


def test_values_that_break_the_rules_of_their_vr_stay_in_json() -> None:
    raw = b"".join(
        (
            b"\x08\x00\x20\x00DA\x06\x00hello ",
            b"\x08\x00\x60\x00CS\x16\x00longer than 16 letters",
            b"\x10\x00\x10\x00PN\x08\x00A^B\x1b[31m",
            b"\x20\x00\x0d\x00UI\x04\x001.x\x00",
        )
    )
    assert json_object(dcmread(BytesIO(raw), force=True)) == {
        "00080020": {"vr": "DA", "Value": ["hello"]},
        "00080060": {"vr": "CS", "Value": ["longer than 16 letters"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B\x1b[31m"}]},
        "0020000D": {"vr": "UI", "Value": ["1.x"]},
    }
