"""docs/conformance.md says what the code negotiates, and no service without a test."""

from __future__ import annotations

import re

import pytest

from dcmhaul.cli.models import MODELS
from tests.unit import conformance_tables

PAGE = conformance_tables.PAGE.read_text()
SERVICES = re.findall(r"^\| (?!service|---)(.+?) \| .*test_\w+\.py.*\|$", PAGE, re.MULTILINE)


def test_the_tables_are_those_of_the_code() -> None:
    assert conformance_tables.filled(PAGE) == PAGE, "python -m tests.unit.conformance_tables"


def test_every_service_of_the_table_names_its_tests() -> None:
    section = PAGE[PAGE.index("| service |") : PAGE.index("What is not in this table")]
    rows = [line for line in section.splitlines()[2:] if line.startswith("|")]
    assert len(rows) == len(SERVICES) > 5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("service", ["find_uid", "get_uid", "move_uid"])
def test_what_the_verbs_propose_the_archive_accepts(model: str, service: str) -> None:
    uid = getattr(MODELS[model], service)
    accepted = PAGE[PAGE.index("<!-- archive -->") : PAGE.index("<!-- /archive -->")]
    assert uid in accepted or not uid
