"""What `migrate` says of its failures, and of what it reads back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul.cli import main
from tests.engine.fake_archive import CT, MR, FakeArchive, Faults, make_instance
from tests.interop.peers import free_port
from tests.net.moving_archive import MovingArchive

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


async def test_a_destination_without_c_get_sends_to_our_port(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    old, new = FakeArchive([make_instance(n) for n in range(3)]), MovingArchive([])
    new.faults.no_get = True
    new.destinations["OURS"] = port
    async with old.running("OLD") as source, new.running("NEW") as destination:
        ends = [str(source), str(destination), "-aet", "OURS", "+P", str(port)]
        ends += ["--bind", "127.0.0.1"]
        ledger = ["--ledger", f"sqlite:///{tmp_path}/ledger.db"]
        with trio.fail_after(60):
            code = await trio.to_thread.run_sync(
                main, ["migrate", *ends, *ledger, "--verify", "digest", "--json"]
            )
            moved = capsys.readouterr()
            again = await trio.to_thread.run_sync(main, ["check", *ends, "--digest", "--all"])
    summary = json.loads(moved.out.splitlines()[-1])
    assert (code, summary["instances"], summary["same_bytes"]) == (0, 3, 3)
    assert f"listening on 127.0.0.1:{port} as OURS" in moved.err
    # OLD has C-GET and needs no port.
    assert (again, len(new.orders)) == (0, 2)
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == ["="] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["migrate", "./a", "./b", "+P", "11112"], "give --verify digest too"),
        (["check", "./a", "./b", "+P", "11112"], "give --digest too"),
        (["check", "./a", "./b", "--digest", "--bind", "127.0.0.1"], "give +P PORT too"),
        (["check", "./a", "./b", "--digest", "+P", "70000"], "70000"),
    ],
)
def test_a_port_without_a_use(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
