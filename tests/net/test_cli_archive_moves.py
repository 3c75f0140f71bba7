"""`archive --peer`: where a C-MOVE may send to, as typed and as configured, and what is told of it."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul import uids
from dcmhaul.net import open_association
from dcmhaul.protocol.negotiation import AssociationRequest, plan_contexts
from dcmhaul.services.move import move
from dcmhaul.services.query import QueryModel
from tests.certificates import make_papers
from tests.interop.peers import free_port
from tests.net.conversation import EXPLICIT, encoder, keys
from tests.net.test_cli import CT, Process, process, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dcmhaul.services.retrieve import RetrieveResponse

STUDY = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"  # of CT_small.dcm


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DCMHAUL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def sink() -> Iterator[Process]:
    with process("receive", "0", "--bind", "127.0.0.1", "--ignore", "-aet", "SINK") as running:
        yield running


def moved(archive: Process, destination: str) -> RetrieveResponse:
    async def ask() -> RetrieveResponse:
        [contexts] = plan_contexts([(QueryModel.STUDY_ROOT.move_uid, EXPLICIT)])
        request = AssociationRequest(
            called_ae_title=archive.title, calling_ae_title="TESTER", contexts=contexts
        )
        async with open_association("127.0.0.1", archive.port, request) as association:
            identifier = encoder(keys(StudyInstanceUID=STUDY))
            return await move(association, QueryModel.STUDY_ROOT, identifier, destination)

    return trio.run(ask)


def serving(*options: str, port: int = 0) -> tuple[str, ...]:
    return ("archive", "--dir", "store", "--port", str(port), "--bind", "127.0.0.1", *options)


def test_a_move_is_performed_counted_and_told(
    sink: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    # The archive itself, which answers its own title alone.
    nobody = f"NOBODY@127.0.0.1:{port}"
    options = ["--peer", sink.address, "--peer", sink.address, "--peer", nobody]
    (tmp_path / "dcmhaul.toml").write_text(
        f'[nodes.view]\nhost = "127.0.0.1"\nport = {sink.port}\nae = "VIEW"\nmax_associations = 2\n'
    )
    options += ["--metrics", "127.0.0.1:0", "--json", "-v"]
    with process(*serving(*options, port=port)) as archive:
        assert run(capsys, "send", archive.address, CT)[0] == 0
        for destination in ("SINK", "VIEW"):
            response = moved(archive, destination)
            assert (response.status, response.completed) == (0x0000, 1)
        assert moved(archive, "ELSEWHERE").status == 0xA801
        response = moved(archive, "NOBODY")
        assert (response.status, response.failed) == (0xA702, 1)
        assert response.error_comment == "NOBODY rejected the association (1/1/7)"
        [url] = [word for line in archive.said for word in line.split() if "/metrics" in word]
        with urllib.request.urlopen(url, timeout=10) as answer:
            metrics = answer.read().decode().splitlines()
        code, out = archive.stop()
    assert code == 0
    summary = json.loads(out.splitlines()[-1])
    assert summary["instances"] == 1
    assert (summary["moves"], summary["sub_operations"]) == (3, 2)
    assert summary["sub_operations_failed"] == 1
    for sample in (
        'dcmhaul_dimse_requests_total{node="other",op="C-MOVE",status_class="success"} 2.0',
        'dcmhaul_dimse_requests_total{node="other",op="C-MOVE",status_class="failure"} 2.0',
        'dcmhaul_instances_total{direction="out",node="other",status_class="success"} 1.0',
        'dcmhaul_instances_total{direction="out",node="view",status_class="success"} 1.0',
        'dcmhaul_retries_total{level="instance"} 0.0',
    ):
        assert sample in metrics
    for line in (
        f"C-MOVE destination {sink.address}",
        f"C-MOVE destination VIEW@127.0.0.1:{sink.port}",
    ):
        assert line in archive.said
    [line] = [line for line in archive.said if line.startswith("C-MOVE to")]
    assert line.startswith(f"C-MOVE to NOBODY: 1 of 1 instances failed: {nobody[7:]}")


def test_nodes_that_share_a_title_are_none_unless_one_is_named(
    sink: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dcmhaul.toml").write_text(
        "".join(
            f'[nodes.{name}]\nhost = "127.0.0.1"\nport = {port}\nae = "PACS"\n'
            for name, port in (("new", sink.port), ("old", free_port()))
        )
    )
    with process(*serving()) as archive:
        assert run(capsys, "send", archive.address, CT)[0] == 0
        assert moved(archive, "PACS").status == 0xA801
        assert archive.stop()[0] == 0
    [line] = [line for line in archive.said if "C-MOVE destination" in line]
    assert line == (
        "PACS is no C-MOVE destination: the nodes new, old share that title; name one by --peer"
    )
    with process(*serving("--peer", "new")) as archive:
        assert moved(archive, "PACS").status == 0x0000
        assert archive.stop()[0] == 0
    assert not [line for line in archive.said if "C-MOVE destination" in line]


def test_a_destination_under_tls_is_a_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its table is for the associations that we open; the flags are for those that we accept."""
    papers = make_papers(tmp_path)
    trusts = ("+cf", papers.path("ca.pem"))
    receiving = ("receive", "0", "--bind", "127.0.0.1", "--ignore", "-aet", "SAFE")
    key, certificate = papers.pair("client")
    tls = f'ca = "{papers.path("ca.pem")}", cert = "{certificate}", key = {{file = "{key}"}}'
    with process(*receiving, "+tls", *papers.pair("server"), *trusts) as safe:
        (tmp_path / "dcmhaul.toml").write_text(
            f'[nodes.safe]\nhost = "127.0.0.1"\nport = {safe.port}\nae = "SAFE"\ntls = {{{tls}}}\n'
        )
        with process(*serving()) as archive:
            assert run(capsys, "send", archive.address, CT)[0] == 0
            response = moved(archive, "SAFE")
            assert (response.status, response.completed) == (0x0000, 1)
            assert archive.stop()[0] == 0


@pytest.mark.parametrize(
    ("peers", "says"),
    [
        (("A@h:104", "A@h:105"), "--peer: A@h:104 and A@h:105 have one AE title"),
        (("nobody",), "'nobody' is not AET@HOST:PORT"),
        (("A@h",), "the port is missing in 'A@h'"),
        (("",), "'' is not AET@HOST:PORT"),
    ],
)
def test_peers_that_are_none(
    peers: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for peer in peers for word in ("--peer", peer)]
    code, out, err = run(capsys, *serving(*options))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert says in err


def test_the_move_classes_are_those_of_the_standard() -> None:
    assert [model.move_uid for model in QueryModel if model.move_uid] == [
        uids.PATIENT_ROOT_MOVE,
        uids.STUDY_ROOT_MOVE,
        uids.PATIENT_STUDY_ONLY_MOVE,
    ]
