"""What `migrate` says of its failures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul.cli import main
from tests.engine.fake_archive import CT, MR, FakeArchive, Faults, make_instance

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("count", [5, 9])
async def test_many_failures_for_one_reason_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    old = FakeArchive([make_instance(n, sop_class=MR) for n in range(count)])
    new = FakeArchive(faults=Faults(classes=(CT,)))
    async with old.running("OLD") as source, new.running("NEW") as destination:
        ledger = f"sqlite:///{tmp_path}/ledger.db"
        arguments = ["migrate", str(source), str(destination), "--job", "all", "--ledger", ledger]
        with trio.fail_after(60):
            code = await trio.to_thread.run_sync(main, [*arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == 6
    records = [json.loads(line) for line in out.splitlines()]
    assert sum(record["type"] == "failed" for record in records) == count
    lines = [line for line in err.splitlines() if line.startswith("failed: ")]
    if count <= 5:
        assert len(lines) == count
        return
    (line,) = lines
    assert line.startswith(f"failed: {count} instances: the destination accepted no presentation")
    assert line.endswith("(dcmhaul report all -f csv lists them)")
