"""Runs `async def` tests under trio, gives them trio's clocks, and names Hypothesis' profiles."""

from __future__ import annotations

import functools
import inspect
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# No deadline and no complaint about slowness: how long a test takes depends on the machine and on
# how the extension was built. `pytest --hypothesis-profile=ci` chooses the other one.
_UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", _UNTIMED, max_examples=50)
settings.register_profile("ci", _UNTIMED, max_examples=500, derandomize=True)
settings.load_profile("dev")

REQUIRE_PEERS = os.environ.get("REQUIRE_PEERS") == "1"


@pytest.fixture
def mock_clock() -> trio.testing.MockClock:
    """A clock that stands still until the test moves it."""
    return trio.testing.MockClock()


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """A clock that jumps to the next deadline whenever every task is blocked."""
    return trio.testing.MockClock(autojump_threshold=0.01)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    function = pyfuncitem.obj
    if inspect.iscoroutinefunction(function):
        clock = next(
            (c for c in pyfuncitem.funcargs.values() if isinstance(c, trio.abc.Clock)), None
        )

        @functools.wraps(function)
        def run(**arguments: object) -> None:
            trio.run(functools.partial(function, **arguments), clock=clock)

        pyfuncitem.obj = run
    return (yield)
