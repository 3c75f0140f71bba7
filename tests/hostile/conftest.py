"""Every row is run against both acceptors that keep what they are sent."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.hostile.harness import Accepting, target

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["receive", "archive"])
def accepting(request: pytest.FixtureRequest, tmp_path: Path) -> Accepting:
    """`target`, but for the folder and the kind of acceptor."""
    return partial(target, tmp_path, request.param)
