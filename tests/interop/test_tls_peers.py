"""TLS with DCMTK (whose getscu, movescu and dcmqrscp have none) and with pynetdicom, in both directions."""

from __future__ import annotations

import json
import ssl
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pydicom.data
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt

from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.uids import IMPLICIT_VR_LITTLE_ENDIAN as IMPLICIT
from dcmhaul.uids import VERIFICATION
from dcmhaul.wire.items import PresentationContextRq
from tests.certificates import Papers, make_papers
from tests.interop import peers
from tests.net.test_cli import _elsewhere, process, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.net.test_cli import Process

__all__ = ["_elsewhere"]  # a fixture of every test here, too

FILES = Path(pydicom.data.__file__).parent / "test_files"
CT = FILES / "CT_small.dcm"
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
MR = FILES / "MR_small.dcm"
# DCMTK and pynetdicom may each write a dataset in their own way.
KEEP = ("--duplicates", "keep-both")


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return make_papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module")
def archive(papers: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Ours, requiring certificates."""
    folder = tmp_path_factory.mktemp("archive")
    words = ("--dir", folder, "--port", "0", "--aet", "ARCH", "--bind", "127.0.0.1")
    with process(
        "archive", *words, *trusted(papers, "server"), "--durable", "none", *KEEP
    ) as running:
        yield running


def trusted(papers: Papers, name: str = "client", ca: str = "ca") -> tuple[str, ...]:
    """The flags of either side; DCMTK's are the same."""
    return ("+tls", *papers.pair(name), "+cf", papers.path(f"{ca}.pem"))


def where(server: Process) -> tuple[str, ...]:
    return ("-aec", server.title, "127.0.0.1", str(server.port))


# -- their clients, our archive -------------------------------------------------------------------


def test_dcmtk_to_our_archive(archive: Process, papers: Papers) -> None:
    flags = trusted(papers)
    assert peers.run_tool("echoscu", *flags, *where(archive)).returncode == 0
    sent = peers.run_tool("storescu", *flags, *where(archive), CT, MR)
    assert sent.returncode == 0, sent.stdout
    found = peers.run_tool(
        *("findscu", *flags, "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID=1CT1"),
        *where(archive),
    )
    assert found.returncode == 0, found.stdout
    assert found.stdout.count("(0010,0020)") >= 1


@pytest.mark.parametrize("name", ["stranger", None])
def test_dcmtk_that_is_not_trusted(archive: Process, papers: Papers, name: str | None) -> None:
    flags = ("+tla", "+cf", papers.path("ca.pem")) if name is None else trusted(papers, name)
    assert peers.run_tool("echoscu", *flags, *where(archive)).returncode != 0
    assert peers.run_tool("echoscu", *trusted(papers), *where(archive)).returncode == 0


def test_dcmtk_without_tls(archive: Process, papers: Papers) -> None:
    assert peers.run_tool("echoscu", *where(archive)).returncode != 0
    assert peers.run_tool("echoscu", *trusted(papers), *where(archive)).returncode == 0
    with process("receive", "0", "--discard", "--bind", "127.0.0.1") as plain:
        assert peers.run_tool("echoscu", *trusted(papers), *where(plain)).returncode != 0
        assert peers.run_tool("echoscu", *where(plain)).returncode == 0


def test_pynetdicom_to_our_archive(archive: Process, papers: Papers) -> None:
    extra = ("--tls", *papers.pair("client"), papers.path("ca.pem"))
    address = ("127.0.0.1", archive.port)
    sent = peers.pynetdicom_send(address, CT, MR, called=archive.title, extra=extra)
    assert sent.returncode == 0, sent.stdout


def retrieve(archive: Process, papers: Papers, act: str, *words: str) -> tuple[int, list[str]]:
    """The final status of a `get` or `move` by pynetdicom, and the UIDs that came to it."""
    kept: list[str] = []

    def keep(event: Any) -> int:
        kept.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    key, certificate = papers.pair("client")
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(papers.path("ca.pem"))
    model, store = f"1.2.840.10008.5.1.4.1.2.2.{2 if act == 'move' else 3}", CT_STORAGE
    ae = AE(ae_title="PYNET")
    ae.add_requested_context(model)
    ae.add_requested_context(store, ExplicitVRLittleEndian)
    association = ae.associate(
        "127.0.0.1",
        archive.port,
        ae_title=archive.title,
        ext_neg=[build_role(store, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
        tls_args=(context, "127.0.0.1"),
    )
    assert association.is_established
    asked = pydicom.Dataset()
    asked.QueryRetrieveLevel = "STUDY"
    asked.StudyInstanceUID = pydicom.dcmread(CT).StudyInstanceUID
    answers = list(getattr(association, f"send_c_{act}")(asked, *words, query_model=model))
    association.release()
    return int(answers[-1][0].Status), kept


def test_pynetdicom_gets_from_our_archive(
    archive: Process, papers: Papers, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "send", archive.address, *trusted(papers), CT)[0] == 0
    status, kept = retrieve(archive, papers, "get")
    assert status == 0
    assert set(kept) == {str(pydicom.dcmread(CT).SOPInstanceUID)}


def test_our_archive_moves_to_a_node_with_tls(
    papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the C-MOVE of pynetdicom to a storescp of DCMTK; all three with certificates."""
    folder = tmp_path / "there"
    folder.mkdir()
    key, certificate = papers.pair("client")
    with peers.storescp(folder, extra=trusted(papers, "server")) as server:
        Path("dcmhaul.toml").write_text(
            f'[nodes.there]\nhost = "127.0.0.1"\nport = {server.port}\nae = "{server.aet}"\n'
            f'tls = {{ca = "{papers.path("ca.pem")}", cert = "{certificate}", key = "{key}"}}\n'
        )
        words = ("--dir", "store", "--port", "0", "--aet", "ARCH", "--bind", "127.0.0.1")
        with process("archive", *words, *trusted(papers, "server")) as archive:
            assert run(capsys, "send", archive.address, *trusted(papers), CT)[0] == 0
            assert retrieve(archive, papers, "move", server.aet)[0] == 0
    (moved,) = folder.iterdir()
    assert pydicom.dcmread(moved) == pydicom.dcmread(CT)


def test_a_peer_that_asks_for_new_keys(archive: Process, papers: Papers) -> None:
    """By a KeyUpdate of OpenSSL's own client (RFC 8446 §4.6.3), before its A-ASSOCIATE-RQ."""
    key, certificate = papers.pair("client")
    argv = [
        peers.require("openssl"),
        "s_client",
        "-connect",
        f"127.0.0.1:{archive.port}",
        "-tls1_3",
    ]
    argv += ["-key", key, "-cert", certificate, "-CAfile", papers.path("ca.pem")]
    request = AssociationRequest(
        called_ae_title=archive.title,
        calling_ae_title="OPENSSL",
        contexts=(
            PresentationContextRq(
                context_id=1, abstract_syntax=VERIFICATION, transfer_syntaxes=(IMPLICIT,)
            ),
        ),
    )
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None

        def read_until(text: bytes) -> None:
            seen = b""
            while text not in seen:
                seen += client.stdout.read(65536) or pytest.fail(repr(seen))  # type: ignore[union-attr]

        try:
            read_until(b"Verify return code")
            for _ in range(3):
                client.stdin.write(b"K\n")
                read_until(b"KEYUPDATE")
            client.stdin.write(request.to_pdu().encode())
            read_until(b"\x02\x00\x00\x00")  # the A-ASSOCIATE-AC
        finally:
            client.kill()


# -- our clients, their servers -------------------------------------------------------------------


def test_to_dcmtk(papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    with peers.storescp(folder, extra=trusted(papers, "server")) as server:
        flags = trusted(papers)
        assert run(capsys, "echo", server.address, *flags)[0] == 0
        assert run(capsys, "send", server.address, *flags, "--check-hostname", CT, MR)[0] == 0
        code, _, err = run(capsys, "echo", server.address, *trusted(papers, ca="other"))
        assert (code, err.count("\n")) == (3, 1)
        assert "of no authority that is trusted here" in err
        for words in (("+tla", "+cf", papers.path("ca.pem")), trusted(papers, "stranger")):
            code, _, err = run(capsys, "echo", server.address, *words)
            assert (code, err.count("\n")) == (3, 1)
            assert "certificate" in err
        code, _, err = run(capsys, "echo", server.address)
        assert (code, err.count("\n")) == (3, 1)
        assert "TLS" in err
    for path in (CT, MR):
        sent = pydicom.dcmread(path)
        assert any(sent == pydicom.dcmread(kept) for kept in folder.iterdir())


def test_tls_to_a_dcmtk_without(papers: Papers, capsys: pytest.CaptureFixture[str]) -> None:
    with peers.storescp() as server:
        code, _, err = run(capsys, "echo", server.address, *trusted(papers))
        assert (code, err.count("\n")) == (3, 1)
        assert "speak TLS" in err
        assert run(capsys, "echo", server.address)[0] == 0


def test_to_pynetdicom(papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Store, find and get; and a migration out of it, from a node."""
    extra = ("--tls", *papers.pair("server"), papers.path("ca.pem"))
    with peers.pynetdicom_scp(tmp_path / "there", extra=extra) as server:
        flags = trusted(papers)
        assert run(capsys, "send", server.address, *flags, CT)[0] == 0
        code, out, _ = run(
            capsys, "find", server.address, *flags, "-P", "-k", "PatientID", "--json"
        )
        assert (code, out.count("1CT1")) == (0, 1)
        words = ("-P", "-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientID=1CT1")
        code, _, err = run(capsys, "get", server.address, *flags, *words, "-od", "got")
        assert code == 0, err
        key, certificate = papers.pair("client")
        Path("dcmhaul.toml").write_text(
            f'[nodes.there]\nhost = "127.0.0.1"\nport = {server.port}\nae = "{server.aet}"\n'
            f'tls = {{ca = "{papers.path("ca.pem")}", cert = "{certificate}", key = "{key}"}}\n'
        )
        code, _, err = run(capsys, "migrate", "there", "./moved")
        assert code == 0, err
    (got,) = Path("got").glob("*.dcm")
    assert pydicom.dcmread(got) == pydicom.dcmread(CT)


def test_orthanc_both_ways(
    papers: Papers, archive: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """We store and ask; then Orthanc stores what it has in our archive."""
    key, certificate = papers.pair("server")
    ours = {"AET": "ARCH", "Host": "127.0.0.1", "Port": archive.port, "UseDicomTls": True}
    options = {
        "DicomTlsEnabled": True,
        "DicomTlsPrivateKey": key,
        "DicomTlsCertificate": certificate,
        "DicomTlsTrustedCertificates": papers.path("ca.pem"),
        "DicomModalities": {"ours": ours},
    }
    with peers.orthanc(tmp_path / "orthanc", options=options) as server:
        flags = trusted(papers)
        code, _, err = run(capsys, "send", server.address, *flags, MR)
        assert code == 0, err
        code, out, _ = run(
            capsys, "find", server.address, *flags, "-S", "-k", "PatientID", "--json"
        )
        assert (code, out.count("4MR1")) == (0, 1)
        code, _, err = run(capsys, "echo", server.address, "+tla", "+cf", papers.path("ca.pem"))
        assert (code, err.count("\n")) == (3, 1)
        base = f"http://127.0.0.1:{server.http_port}"
        with urllib.request.urlopen(f"{base}/instances") as answer:
            (instance,) = json.load(answer)
        body = json.dumps({"Resources": [instance], "Synchronous": True}).encode()
        with urllib.request.urlopen(f"{base}/modalities/ours/store", data=body) as answer:
            assert json.load(answer)["FailedInstancesCount"] == 0
    code, out, _ = run(
        capsys, "find", archive.address, *trusted(papers), "-S", "-k", "PatientID=4MR1"
    )
    assert code == 0
