"""C-MOVE with our archive in the middle: asked by DCMTK, pynetdicom and Orthanc, sending to each of them."""

from __future__ import annotations

import json
import re
import urllib.request
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul import uids
from dcmhaul.archive import MoveDestination
from dcmhaul.archive import moves as moves_module
from tests.archive.serving import AE_TITLE, Served, serving
from tests.archive.test_archive import contents
from tests.archive.test_moves import Receiver, archive, outgoing, study, third
from tests.archive.test_query import query
from tests.interop import peers
from tests.interop.stores import expected, received, same_values, synthetic_set

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from subprocess import CompletedProcess

    from dcmhaul.objects.instances import IncomingInstance
    from dcmhaul.objects.part10 import FileInstance


async def in_thread(call: Callable[..., Any], *arguments: Any, **fields: Any) -> Any:
    return await trio.to_thread.run_sync(partial(call, *arguments, **fields))


async def movescu(
    served: Served, destination: str, *options: str | Path | int, uid: str = "1.2.3.1"
) -> CompletedProcess[str]:
    done: CompletedProcess[str] = await in_thread(
        peers.run_tool,
        "movescu",
        *("-d", "-S", "-aet", "MOVESCU", "-aec", AE_TITLE, "-aem", destination, *options),
        *("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}"),
        *("127.0.0.1", served.port),
        nodelay=True,
    )
    return done


def statuses(done: CompletedProcess[str]) -> list[int]:
    return [int(found, 16) for found in re.findall(r"DIMSE Status +: (0x\w{4})", done.stdout)]


def counts(done: CompletedProcess[str], name: str) -> list[str]:
    return re.findall(rf"{name} Suboperations +: (\w+)", done.stdout)


def destination(server: peers.Server, **fields: Any) -> MoveDestination:
    return MoveDestination(ae_title=server.aet, host=server.host, port=server.port, **fields)


async def stored(served: Served, folder: Path) -> list[FileInstance]:
    instances = synthetic_set(folder)
    summary = await served.archive.import_files([one.path for one in instances])
    assert summary.stored == len(instances)
    return instances


# -- DCMTK asks -------------------------------------------------------------------------------------


async def test_movescu_to_a_third_party(tmp_path: Path, storescp: peers.Server) -> None:
    async with serving(tmp_path / "a", moves=outgoing(destination(storescp))) as served:
        instances = await stored(served, tmp_path / "files")
        studies = {one.study_instance_uid for one in instances}
        moved = []
        for uid in sorted(filter(None, studies)):
            done = await movescu(served, storescp.aet, uid=uid)
            assert (done.returncode, statuses(done)[-1]) == (0, 0x0000), done.stdout
            assert counts(done, "Failed")[-1] == "0"
            moved.append(int(counts(done, "Completed")[-1]))
    assert sum(moved) == len(instances)
    assert storescp.folder is not None
    assert received(storescp.folder) == expected(instances)
    assert "Association Abort" not in storescp.output()


async def test_movescu_to_itself(tmp_path: Path) -> None:
    """DCMTK encodes anew what it writes; under +B it forgets where to."""
    port = peers.free_port()
    own = MoveDestination(ae_title="MOVESCU", host="127.0.0.1", port=port)
    folder = tmp_path / "own"
    folder.mkdir()
    async with serving(tmp_path / "a", moves=outgoing(own)) as served:
        instances = await stored(served, tmp_path / "files")
        uid = instances[0].study_instance_uid or ""
        wanted = {one.sop_instance_uid: one for one in instances if one.study_instance_uid == uid}
        done = await movescu(served, "MOVESCU", "+P", port, "+xa", "-od", folder, uid=uid)
    assert (done.returncode, statuses(done)[-1]) == (0, 0x0000), done.stdout
    written = {path.name.partition(".")[2]: path for path in folder.iterdir()}
    assert written.keys() == wanted.keys()
    assert all(same_values(path, wanted[uid].path) for uid, path in written.items())


async def test_movescu_cancels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = trio.Event()
    close = moves_module._Outgoing._open_no_more

    def closing(self: Any) -> None:
        stopped.set()
        close(self)

    async def reply(_incoming: IncomingInstance) -> int:
        await stopped.wait()
        return 0

    monkeypatch.setattr(moves_module._Outgoing, "_open_no_more", closing)
    receiver = Receiver(reply=reply)
    async with (
        receiver.listening() as port,
        archive(tmp_path, outgoing(third(port)), study(1, 9)) as served,
    ):
        done = await movescu(served, "THIRD", "--cancel", "1")
    assert statuses(done)[0] == 0xFF00
    assert statuses(done)[-1] == 0xFE00, done.stdout
    completed = int(counts(done, "Completed")[-1])
    assert completed in (0, 1)  # whether the first was begun when the C-CANCEL came
    assert int(counts(done, "Remaining")[-1]) == 9 - completed
    assert len(receiver.data) == completed
    assert not (completed and receiver.broken)


async def test_movescu_is_told_what_went_wrong(tmp_path: Path) -> None:
    moves = outgoing(MoveDestination(ae_title="NOBODY", host="127.0.0.1", port=peers.free_port()))
    async with archive(tmp_path, moves, study(1, 2)) as served:
        unknown = await movescu(served, "STRANGER")
        out_of_reach = await movescu(served, "NOBODY")
        nothing = await movescu(served, "NOBODY", uid="9.9")
    assert statuses(unknown) == [0xA801]
    assert "no move destination STRANGER is configured" in unknown.stdout
    assert unknown.returncode == 69
    assert set(statuses(out_of_reach)) == {0xFF00, 0xA702}
    assert statuses(out_of_reach)[-1] == 0xA702
    assert "NOBODY cannot be reached" in out_of_reach.stdout
    listed = re.search(r"\(0008,0058\) UI \[(.*?)\]", out_of_reach.stdout)
    assert listed is not None
    assert sorted(listed[1].split("\\")) == ["1.2.3.1.1.1", "1.2.3.1.1.2"]
    assert (statuses(nothing), nothing.returncode) == ([0x0000], 0)


@pytest.mark.parametrize("option", ["--refuse", "--abort-during"])
async def test_a_storescp_that_refuses_or_aborts(tmp_path: Path, option: str) -> None:
    with peers.storescp(extra=[option]) as server:
        async with archive(tmp_path, outgoing(destination(server)), study(1, 2)) as served:
            done = await movescu(served, server.aet)
    assert statuses(done)[-1] == 0xA702, done.stdout
    assert counts(done, "Failed")[-1] == "2"


# -- pynetdicom asks, and takes -----------------------------------------------------------------------


def pynetdicom_move(port: int, aem: str, uid: str) -> list[tuple[int, Any]]:
    from pynetdicom import AE

    ae = AE(ae_title="PYNET")
    ae.add_requested_context(uids.STUDY_ROOT_MOVE)
    association = ae.associate("127.0.0.1", port, ae_title=AE_TITLE)
    assert association.is_established
    identifier = query("STUDY", StudyInstanceUID=uid)
    model = uids.STUDY_ROOT_MOVE
    answers = [
        (status.Status, (status, dataset))
        for status, dataset in association.send_c_move(identifier, aem, model)
    ]
    association.release()
    return answers


async def test_pynetdicom_to_pynetdicom(tmp_path: Path, pynetdicom_scp: peers.Server) -> None:
    moves = outgoing(destination(pynetdicom_scp, window=4), third(peers.free_port()))
    async with archive(tmp_path, moves, study(1, 4)) as served:
        answers = await in_thread(pynetdicom_move, served.port, pynetdicom_scp.aet, "1.2.3.1")
        failed = await in_thread(pynetdicom_move, served.port, "THIRD", "1.2.3.1")
        held = await contents(served.archive, StudyInstanceUID="1.2.3.1")
    status, (response, _) = answers[-1]
    assert (status, response.NumberOfCompletedSuboperations) == (0x0000, 4)
    assert answers[0][0] == 0xFF00
    assert answers[0][1][0].NumberOfRemainingSuboperations == 4
    assert pynetdicom_scp.folder is not None
    got = {path.stem for path in pynetdicom_scp.folder.glob("*.dcm")}
    assert got == set(held)
    status, (response, dataset) = failed[-1]
    assert (status, response.NumberOfFailedSuboperations) == (0xA702, 4)
    assert sorted(dataset.FailedSOPInstanceUIDList) == sorted(held)


# -- Orthanc asks, and takes --------------------------------------------------------------------------


def rest(server: peers.Server, path: str, body: Mapping[str, Any] | None = None) -> Any:
    url = f"http://127.0.0.1:{server.http_port}{path}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data=data, timeout=60) as answer:
        return json.load(answer)


async def test_orthanc_asks_and_takes(tmp_path: Path) -> None:
    """By its own C-MOVE, by a query whose answer is retrieved, and where DCMTK asks."""
    port = peers.free_port()
    name = AE_TITLE.lower()
    with peers.orthanc(tmp_path / "orthanc", destinations={AE_TITLE: port}) as server:
        call = partial(in_thread, rest, server)
        moves = outgoing(destination(server))
        datasets = [*study(1, 3), *study(2, 2), *study(3, 4)]
        async with archive(tmp_path, moves, datasets, port=port) as served:
            wanted = [{"StudyInstanceUID": "1.2.3.1"}]
            body: dict[str, Any] = {
                "Level": "Study",
                "Resources": wanted,
                "TargetAet": server.aet,
            }
            await call(f"/modalities/{name}/move", body)
            assert len(await call("/instances")) == 3
            body = {"Level": "Study", "Query": {"StudyInstanceUID": "1.2.3.2"}}
            found = await call(f"/modalities/{name}/query", body)
            await call(f"/queries/{found['ID']}/retrieve", {"TargetAet": server.aet})
            assert len(await call("/instances")) == 5
            done = await movescu(served, server.aet, uid="1.2.3.3")
            assert statuses(done)[-1] == 0x0000, done.stdout
            instances = await call("/instances?expand")
    assert {one["MainDicomTags"]["SOPInstanceUID"] for one in instances} == {
        dataset.SOPInstanceUID for dataset in datasets
    }
    assert moves.statistics.sent == len(datasets)
