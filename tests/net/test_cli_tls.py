"""The TLS flags and tables of the configuration, on the verbs and the servers."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.certificates import Papers, make_papers
from tests.net.test_cli import CT, _elsewhere, process, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.net.test_cli import Process

__all__ = ["_elsewhere"]  # a fixture of every test here, too


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return make_papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module")
def archive(papers: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An archive that requires certificates."""
    folder = tmp_path_factory.mktemp("archive")
    words = ("--dir", folder, "--port", "0", "--aet", "ARCH", "--bind", "127.0.0.1")
    trust = ("+tls", *papers.pair("server"), "+cf", papers.path("ca.pem"))
    with process("archive", *words, *trust, "--durable", "none", "-v") as running:
        yield running


def flags(papers: Papers, name: str = "client", ca: str = "ca") -> tuple[str, ...]:
    return ("+tls", *papers.pair(name), "+cf", papers.path(f"{ca}.pem"))


def test_the_verbs(
    archive: Process, papers: Papers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """echo, send, find, get, check and migrate, each under TLS."""
    trusted = flags(papers)
    code, _, err = run(capsys, "echo", archive.address, *trusted, "-v")
    assert code == 0
    assert f"127.0.0.1:{archive.port}: TLSv1.3, TLS_" in err
    assert "CN=server" in err
    code, _, err = run(capsys, "send", archive.address, *trusted, "-usr", "me", "-pwd", "x", CT)
    assert code == 0
    assert "clear" not in err
    code, out, _ = run(capsys, "find", archive.address, *trusted, "-S", "-k", "PatientID=1CT1")
    assert code == 0
    assert len(out.splitlines()) == 2
    got = tmp_path / "got"
    words = ("-S", "-k", "PatientID=1CT1", "-k", "StudyInstanceUID", "-od", got)
    assert run(capsys, "get", archive.address, *trusted, *words)[0] == 0
    assert len(list(got.glob("*.dcm"))) == 1
    code, out, _ = run(capsys, "check", archive.address, f"{got}/", *trusted, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["same"] == 1
    code, out, _ = run(capsys, "migrate", archive.address, f"{tmp_path}/moved", *trusted, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["instances"] == 1


@pytest.mark.parametrize("certificate", ["typed", "configured"])
def test_a_move_to_a_port_of_ours(
    certificate: str, papers: Papers, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked under TLS, and brought under TLS: the archive has our port as a node."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ca, (key, pem) = papers.path("ca.pem"), papers.pair("server")
    table = f'ca = "{ca}"\ncert = "{pem}"\nkey = "{key}"\n'
    Path("dcmhaul.toml").write_text(
        f'[nodes.us]\nhost = "127.0.0.1"\nport = {port}\nae = "US"\n[nodes.us.tls]\n{table}'
    )
    words = ("--dir", "store", "--port", "0", "--aet", "ARCH", "--bind", "127.0.0.1")
    with process("archive", *words, *flags(papers, "server"), "-vc") as archive:
        assert run(capsys, "send", archive.address, *flags(papers), CT)[0] == 0
        ours = flags(papers)
        if certificate == "configured":
            Path("dcmhaul.toml").write_text(
                f'[nodes.old]\nhost = "127.0.0.1"\nport = {archive.port}\nae = "ARCH"\n'
                f'tls = {{ca = "{ca}"}}\n[receive.tls]\n{table}'
            )
            ours = ()
        peer = archive.address if ours else "old"
        asked = ("-S", "-k", "PatientID=1CT1", "-aet", "US", "+P", str(port), "-od", "got", "-v")
        code, _, err = run(capsys, "move", peer, *ours, *asked)
    assert code == 0
    assert err.count(": TLSv1.3, TLS_") >= 2
    assert len(list(Path("got").glob("*.dcm"))) == 1


def test_nodes_have_tls_of_their_own(
    archive: Process, papers: Papers, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the host's name checked, unless the table, or `-ic`, says otherwise."""
    base = f'host = "127.0.0.1"\nport = {archive.port}\nae = "ARCH"\n'
    key, certificate = papers.pair("client")
    tls = f'ca = "{papers.path("ca.pem")}", cert = "{certificate}", key = {{file = "{key}"}}'
    Path("dcmhaul.toml").write_text(
        f"[nodes.here]\n{base}tls = {{{tls}}}\n"
        f"[nodes.bare]\n{base}tls = {{}}\n"
        f"[nodes.missing]\n{base}tls = {{ca = 'absent.pem'}}\n"
    )
    assert run(capsys, "echo", "here")[0] == 0
    assert run(capsys, "migrate", "here", "./moved", "--dry-run")[0] == 0
    code, _, err = run(capsys, "echo", "bare")
    assert code == 3
    assert "of no authority that is trusted here" in err
    code, _, err = run(capsys, "echo", "bare", "-ic", "+tls", *papers.pair("client"))
    assert code == 0
    code, _, err = run(capsys, "echo", "missing")
    assert code == 2
    assert err == "dcmhaul echo: absent.pem: No such file or directory\n"
    code, _, err = run(capsys, "echo", "here", "+tla")
    assert code == 3
    assert "+tls KEY CERT" in err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("+cf", "ca.pem"), 2, "+cf needs TLS, which +tls KEY CERT or +tla asks for"),
        (("-ic",), 2, "-rc, -vc or -ic needs TLS"),
        (("--check-hostname",), 2, "--check-hostname needs TLS"),
        (("+tla", "+tls", "a.key", "a.pem"), 2, "+tls and +tla contradict each other"),
        (("+tls", "a.key", "a.pem"), 2, "a.key: No such file or directory"),
        (("+tls", "a.key"), 2, "+tls"),
        (("+pw", "secret"), 2, "+pw: an option of DCMTK's echoscu that dcmhaul does not support"),
    ],
)
def test_flags_that_do_not_fit(
    words: tuple[str, ...], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, err = run(capsys, "echo", "X@127.0.0.1:1", *words)
    assert got == code
    assert text in err
    assert out == ""
    assert len([line for line in err.splitlines() if "Usage" not in line and line]) <= 2


def test_refusals_are_exit_code_3_and_one_line(
    archive: Process, papers: Papers, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, text in (
        ((), "it takes TLS alone"),
        (flags(papers, ca="other"), "of no authority that is trusted here"),
        (flags(papers, "stranger"), "does not trust the authority of our certificate"),
        (("+tla", "+cf", papers.path("ca.pem")), "requires a certificate of ours"),
    ):
        code, _, err = run(capsys, "echo", archive.address, *words)
        assert code == 3
        assert err.count("\n") == 1
        assert text in err
    assert run(capsys, "echo", archive.address, *flags(papers), "--check-hostname")[0] == 0
    assert archive.process.poll() is None


def test_a_port_that_takes_no_part_in_the_handshake(
    papers: Papers, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"X@127.0.0.1:{silent.getsockname()[1]}"
        code, _, err = run(capsys, "echo", address, *flags(papers), "-to", "0.2")
    assert (code, err.count("\n")) == (3, 1)
    assert "0.2 s (TLS handshake time-out)" in err
    assert "does it speak TLS on this port?" in err


def test_a_send_that_tls_refuses_does_not_try_for_long(
    archive: Process, papers: Papers, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "send", archive.address, *flags(papers, "stranger"), CT, "--json")
    assert code == 3
    assert err.count("does not trust") == 1
    assert json.loads(out.splitlines()[-1])["failed"] == 1


def test_the_certificate_is_for_another_host(
    papers: Papers, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which the flags let pass, as DCMTK does, unless they are told not to."""
    words = ("+tls", *papers.pair("elsewhere"), "-ic", "--discard", "--bind", "127.0.0.1")
    with process("receive", "0", *words, "-q") as server:
        trust = ("+tla", "+cf", papers.path("ca.pem"))
        assert run(capsys, "echo", server.address, *trust)[0] == 0
        code, _, err = run(capsys, "echo", server.address, *trust, "--check-hostname")
        assert server.stop()[0] == 0
    assert [line for line in server.said if not line.startswith("import")] == [
        f"listening on 127.0.0.1:{server.port} as DCMHAUL"
    ]
    assert code == 3
    assert "is for another host" in err


def test_receive_takes_its_table(papers: Papers, capsys: pytest.CaptureFixture[str]) -> None:
    key, certificate = papers.pair("server")
    Path("dcmhaul.toml").write_text(
        f'[receive.tls]\nca = "{papers.path("ca.pem")}"\ncert = "{certificate}"\n'
        f'key = "{key}"\nclient_certificate = "verify"\n'
    )
    with process("receive", "0", "--discard", "--bind", "127.0.0.1", "-v") as server:
        trust = ("+cf", papers.path("ca.pem"))
        assert run(capsys, "echo", server.address, "+tla", *trust)[0] == 0
        assert run(capsys, "echo", server.address, *flags(papers))[0] == 0
        assert run(capsys, "echo", server.address, *flags(papers, "stranger"))[0] == 3
        assert server.stop()[0] == 0
    nobody, somebody = (line for line in server.said if ": TLSv1.3, TLS_" in line)
    assert nobody.endswith(", peer no certificate that was checked")
    assert somebody.endswith("CN=client")
    assert sum("of no authority that is trusted here" in line for line in server.said) == 1
    code, _, err = run(
        capsys, "receive", "0", "--discard", "-rc", "+tls", key, certificate, "+cf", "x"
    )
    assert code == 2
    assert err == "dcmhaul receive: x: No such file or directory\n"


def test_who_trusts_nobody_refuses_everybody(
    archive: Process, papers: Papers, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "echo", archive.address, "+tls", *papers.pair("client"))
    assert (code, err.count("\n")) == (3, 1)
    assert "of no authority that is trusted here (+cf FILE)" in err
    words = ("+tls", *papers.pair("server"), "--discard", "--bind", "127.0.0.1")
    with process("receive", "0", *words) as server:
        assert run(capsys, "echo", server.address, *flags(papers))[0] == 3
    assert any(line.startswith("every caller will be refused: +cf FILE") for line in server.said)
