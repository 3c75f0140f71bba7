"""Keys, certificates and trust: each file that is of no use is one line that says why."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization

from dcmhaul.config import TlsSettings, load_configuration
from dcmhaul.errors import ConfigurationError
from dcmhaul.net import SocketOptions, secured
from dcmhaul.net.credentials import client_context, server_context
from tests.certificates import Papers, make_papers

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")
    papers = make_papers(folder)
    key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
    for name, form in (
        ("modern", serialization.PrivateFormat.PKCS8),
        ("old", serialization.PrivateFormat.TraditionalOpenSSL),
    ):
        secret = serialization.BestAvailableEncryption(b"secret")
        encrypted = key.private_bytes(serialization.Encoding.PEM, form, secret)
        (folder / f"{name}.key").write_bytes(encrypted)
    (folder / "empty.pem").write_bytes(b"")
    (folder / "broken.pem").write_bytes(
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    )
    (folder / "folder.pem").mkdir()
    return papers


def test_both_kinds_of_context(papers: Papers) -> None:
    client = client_context(papers.settings("client"))
    assert client.minimum_version == ssl.TLSVersion.TLSv1_2
    assert client.verify_mode == ssl.CERT_REQUIRED
    assert client.check_hostname
    assert client_context(papers.settings("client")) is client
    assert not client_context(papers.settings("client", check_hostname=False)).check_hostname
    unchecked = client_context(papers.settings(None, None, peer_certificate="ignore"))
    assert (unchecked.verify_mode, unchecked.check_hostname) == (ssl.CERT_NONE, False)
    # Whoever is asked for a host's name may be vouched for by the authorities that the system trusts.
    assert client_context(TlsSettings()).check_hostname
    modes = {
        needed: server_context(papers.settings("server", peer_certificate=needed)).verify_mode
        for needed in ("require", "verify", "ignore")
    }
    assert list(modes.values()) == [ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL, ssl.CERT_NONE]
    weak = [c["name"] for c in client.get_ciphers() if "DHE" not in c["name"]]
    assert all(name.startswith("TLS_") for name in weak)  # those of TLS 1.3
    plain = SocketOptions(congestion="reno")
    assert secured(plain, None) is plain
    assert secured(plain, papers.settings("client")) == replace(plain, tls=client)


@pytest.mark.parametrize(
    ("make", "names", "text"),
    [
        (client_context, {"key": "absent.key"}, "absent.key: No such file or directory"),
        (client_context, {"certificate": "absent.pem"}, "absent.pem: No such file or directory"),
        (client_context, {"ca": "absent.pem"}, "absent.pem: No such file or directory"),
        (client_context, {"ca": "folder.pem"}, "folder.pem: Is a directory"),
        (client_context, {"ca": "empty.pem"}, "empty.pem: holds no PEM certificate to trust"),
        (client_context, {"ca": "broken.pem"}, "broken.pem: holds no PEM certificate to trust"),
        (client_context, {"key": "client.pem"}, "client.pem: holds no PEM private key"),
        (server_context, {"key": "client.key"}, "this key does not belong to the certificate"),
        (server_context, {"key": "modern.key"}, "modern.key: the key is encrypted"),
        (server_context, {"key": "old.key"}, "old.key: the key is encrypted"),
        (server_context, {"certificate": "empty.pem"}, "empty.pem: holds no PEM certificate"),
        (server_context, {"certificate": "broken.pem"}, "not usable"),
        (
            server_context,
            {"key": "server.pem", "certificate": "server.key"},
            "server.key: holds no PEM certificate: the key comes first",
        ),
        (server_context, {"key": None, "certificate": None}, "needs a key and a certificate"),
    ],
)
def test_what_is_of_no_use(
    make: Callable[[TlsSettings], ssl.SSLContext],
    names: dict[str, Any],
    text: str,
    papers: Papers,
) -> None:
    settings = papers.settings("server", check_hostname=False)
    for field, name in names.items():
        value = None if name is None else papers.path(name)
        if field == "ca":
            assert value is not None
            settings = replace(settings, ca=(value,))
        else:
            settings = replace(settings, **{field: value})  # type: ignore[arg-type]  # key or certificate
    with pytest.raises(ConfigurationError, match=text) as caught:
        make(settings)
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read(papers: Papers, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ConfigurationError, match=r"ca\.pem: Permission denied"):
        client_context.__wrapped__(papers.settings("server"))
    assert Path(papers.path("ca.pem")).exists()


def block(holding: str) -> str:
    """The one block of docs/tls.md that has this text, without its first line."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "tls.md").read_text()
    (found,) = (block for block in page.split("```")[1::2] if holding in block)
    return found.partition("\n")[2]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_recipe_makes_certificates_that_fit(tmp_path: Path) -> None:
    recipe = block("openssl req -x509")
    subprocess.run(["sh", "-ec", recipe], cwd=tmp_path, check=True, capture_output=True)
    papers = Papers(folder=tmp_path)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(papers.settings("client")).wrap_bio(
        back, there, server_hostname="localhost"
    )
    server = server_context(papers.settings("server")).wrap_bio(there, back, server_side=True)
    for end in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    assert client.version() == server.version() == "TLSv1.3"


def test_the_tables_of_the_page_are_read(tmp_path: Path) -> None:
    path = tmp_path / "dcmhaul.toml"
    path.write_text(block("[nodes.new]"))
    configuration = load_configuration(str(path))
    assert configuration.nodes["new"].tls is not None
    assert configuration.receive_tls is not None
