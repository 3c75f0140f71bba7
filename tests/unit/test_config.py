"""Peers as typed, and dcmhaul.toml with all its faults at once."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from dcmhaul.config import (
    Configuration,
    Node,
    Peer,
    TlsSettings,
    ae_title,
    duration_seconds,
    find_configuration,
    load_configuration,
    parse_peer,
    pdu_length,
    port_number,
    size_bytes,
    split_peer,
)
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

OLD = Node(name="old", host="10.1.2.3", port=104, ae_title="OLDPACS")
CONFIGURATION = Configuration(nodes={"old": OLD})


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DCMHAUL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "host", "port", "title"),
    [
        ("PACS@host:104", "host", 104, "PACS"),
        ("PACS@10.0.0.1:11112", "10.0.0.1", 11112, "PACS"),
        ("A@B@host:104", "host", 104, "A@B"),
        ("PACS@[::1]:104", "::1", 104, "PACS"),
        ("MY PACS@host:104", "host", 104, "MY PACS"),
    ],
)
def test_a_peer_with_an_at_sign(text: str, host: str, port: int, title: str) -> None:
    assert parse_peer(text, CONFIGURATION) == Peer(host=host, port=port, ae_title=title)


@pytest.mark.parametrize(
    "text",
    [
        "PACS@host",
        "PACS@:104",
        "PACS@host:0",
        "PACS@host:65536",
        "PACS@host:x",
        "PACS@::1:104",
        "PACS@[::1]",
        "PACS@[::1:104",
        "@host:104",
        "SEVENTEENLETTERSX@host:104",
        "A\\B@host:104",
    ],
)
def test_a_peer_that_cannot_be_used(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_peer(text, CONFIGURATION)


def test_host_and_port_are_two_words() -> None:
    peer, rest = split_peer(["host", "104", "a.dcm", "b.dcm"], CONFIGURATION)
    assert (peer.host, peer.port, peer.ae_title) == ("host", 104, None)
    assert rest == ["a.dcm", "b.dcm"]
    assert str(peer) == "ANY-SCP@host:104"
    assert peer.called("PACS").ae_title == "PACS"


def test_ipv6_as_a_host_of_its_own() -> None:
    peer, _ = split_peer(["::1", "104"], CONFIGURATION)
    assert (peer.host, peer.address) == ("::1", "[::1]:104")


def test_a_file_named_by_digits_needs_a_folder_in_front() -> None:
    peer, rest = split_peer(["old", "./104"], CONFIGURATION)
    assert (peer, rest) == (OLD.peer, ["./104"])


def test_a_title_wins_over_host_and_port() -> None:
    peer, rest = split_peer(["PACS@host:104", "105"], CONFIGURATION)
    assert (peer.port, rest) == (104, ["105"])


def test_a_name_is_a_node() -> None:
    assert parse_peer("old", CONFIGURATION) == Peer(
        host="10.1.2.3", port=104, ae_title="OLDPACS", name="old"
    )
    with pytest.raises(ConfigurationError, match=r"'new' is not AET@HOST:PORT.*nodes: old"):
        parse_peer("new", CONFIGURATION)


def test_no_peer_at_all() -> None:
    with pytest.raises(ConfigurationError, match="a peer is missing"):
        split_peer([], CONFIGURATION)


def test_titles_are_stripped_and_checked() -> None:
    assert ae_title("  PACS ") == "PACS"
    for bad in ("", "   ", "x" * 17, "A\tB", "Ä"):
        with pytest.raises(ConfigurationError):
            ae_title(bad)


@pytest.mark.parametrize(
    ("value", "seconds"), [("10s", 10), ("5m", 300), ("500ms", 0.5), (30, 30), ("1.5h", 5400)]
)
def test_durations(value: str | int, seconds: float) -> None:
    assert duration_seconds(value) == seconds


@pytest.mark.parametrize("value", [0, "0", 4096, "4k", "2g", 2**32 - 1])
def test_pdu_lengths(value: str | int) -> None:
    assert pdu_length(value) == size_bytes(value)


@pytest.mark.parametrize("value", [1, 4095, "4g", 2**32, "-1", "many"])
def test_bad_pdu_lengths(value: str | int) -> None:
    with pytest.raises(ConfigurationError):
        pdu_length(value)


@pytest.mark.parametrize("value", ["", "s", "10 parsecs", "-1", "1,5s"])
def test_bad_durations(value: str) -> None:
    with pytest.raises(ConfigurationError):
        duration_seconds(value)


@pytest.mark.parametrize(
    ("value", "size"), [("65536", 65536), ("64k", 65536), ("1MiB", 1 << 20), (16384, 16384)]
)
def test_sizes(value: str | int, size: int) -> None:
    assert size_bytes(value) == size


@pytest.mark.parametrize("value", ["0", "65536", "-1", "1e3", "१०४", ""])
def test_bad_ports(value: str) -> None:
    with pytest.raises(ConfigurationError):
        port_number(value)


FILE = """
[defaults]
calling_ae = "ME"
timeout = {connect = "3s", dimse = "5m", idle = 0}
[nodes.old]
host = "10.1.2.3"
port = 104
ae = "OLDPACS"
max_associations = 6
max_pdu = "64k"
window = [1, 8]
[receive]
ae = "MINE"
port = 11112
[ledger]
url = "sqlite:///x.db"
[storage]
classes = ["1.2.3.4"]
"""


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "dcmhaul.toml"
    path.write_text(FILE)
    found = load_configuration()
    assert found.path is not None
    assert found.path.name == "dcmhaul.toml"
    assert found.calling_ae_title == "ME"
    assert found.timeouts == {"connect": 3.0, "dimse": 300.0, "idle": None}
    assert found.nodes["old"] == Node(
        name="old",
        host="10.1.2.3",
        port=104,
        ae_title="OLDPACS",
        associations_max=6,
        pdu_length_max=65536,
        window=(1, 8),
    )
    assert (found.receive_ae_title, found.receive_port) == ("MINE", 11112)
    assert found.ledger_url == "sqlite:///x.db"
    assert found.extra_storage_classes == ("1.2.3.4",)


def test_without_a_file_the_defaults_hold() -> None:
    assert load_configuration() == Configuration()
    assert Configuration().calling_ae_title == "DCMHAUL"


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_configuration() is None
    user = tmp_path / "config" / "dcmhaul" / "dcmhaul.toml"
    user.parent.mkdir(parents=True)
    user.write_text("")
    assert find_configuration() == user
    here = tmp_path / "dcmhaul.toml"
    here.write_text("")
    found = find_configuration()
    assert found is not None
    assert found.resolve() == here
    named = tmp_path / "named.toml"
    named.write_text("")
    monkeypatch.setenv("DCMHAUL_CONFIG", str(named))
    assert find_configuration() == named
    assert find_configuration(str(here)) == here
    with pytest.raises(ConfigurationError, match=r"--config: there is no file"):
        find_configuration(str(tmp_path / "absent.toml"))


def test_all_faults_are_reported_with_their_paths(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        """
[defaults]
timeout = {connect = "10 parsecs"}
[nodes.old]
host = "h"
port = 70000
ae = "A TITLE THAT IS TOO LONG"
tls = {ca = "ca.pem", certificate = "me.pem", key = "me.key"}
[nodes."a b"]
host = "h"
[storage]
classes = ["1.2.x"]
"""
    )
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(str(path))
    text = str(caught.value)
    assert "\n" not in text
    for fault in (
        "defaults.timeout.connect: ",
        "nodes.old.port: a port is a number from 1 to 65535",
        "nodes.old.ae: ",
        "nodes.old.tls.certificate: this version knows no such key",
        "nodes.a b.port: Field required",
        "storage.classes.0: ",
    ):
        assert fault in text


def test_tls_of_nodes_and_of_receive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "here.toml"
    path.write_text(
        """
[nodes.new]
host = "new.example"
port = 2762
ae = "NEWPACS"
tls = {ca = "ca.pem", cert = "me.pem", key = {file = "/run/secrets/me.key"}}
[nodes.public]
host = "public.example"
port = 2762
ae = "PUBLIC"
tls = {}
[nodes.plain]
host = "plain.example"
port = 104
ae = "PLAIN"
[receive.tls]
ca = ["one.pem", "two/two.pem"]
cert = "me.pem"
key = "me.key"
client_certificate = "verify"
"""
    )
    monkeypatch.setenv("DCMHAUL_NODES__PUBLIC__TLS__CHECK_HOSTNAME", "false")
    configuration = load_configuration(str(path))
    assert configuration.nodes["new"].peer.tls == TlsSettings(
        ca=(str(tmp_path / "ca.pem"),),
        certificate=str(tmp_path / "me.pem"),
        key="/run/secrets/me.key",
    )
    assert configuration.nodes["public"].tls == TlsSettings(check_hostname=False)
    assert configuration.nodes["plain"].peer.tls is None
    assert configuration.receive_tls == TlsSettings(
        ca=(str(tmp_path / "one.pem"), str(tmp_path / "two" / "two.pem")),
        certificate=str(tmp_path / "me.pem"),
        key=str(tmp_path / "me.key"),
        peer_certificate="verify",
    )


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ("cert = 'me.pem'", "receive.tls: cert and key belong together"),
        ("key = 'me.key'", "receive.tls: cert and key belong together"),
        ("key = {env = 'KEY'}\ncert = 'me.pem'", "this version knows no such key"),
        ("client_certificate = 'maybe'", "receive.tls.client_certificate: "),
        ("check_hostname = true", "receive.tls.check_hostname: this version knows no such key"),
        ("ca = ''", "receive.tls.ca"),
    ],
)
def test_tls_tables_that_do_not_fit(tmp_path: Path, table: str, fault: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f"[receive.tls]\n{table}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(str(path))
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["nodes = ", "\xff"])
def test_a_file_that_is_no_toml(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError, match="not TOML"):
        load_configuration(str(path))


def test_the_environment_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dcmhaul.toml").write_text(FILE)
    monkeypatch.setenv("DCMHAUL_NODES__OLD__PORT", "105")
    monkeypatch.setenv("DCMHAUL_DEFAULTS__CALLING_AE", "OTHER")
    monkeypatch.setenv("DCMHAUL_UNRELATED__THING", "x")
    found = load_configuration()
    assert found.nodes["old"].port == 105
    assert found.calling_ae_title == "OTHER"


def test_an_override_inside_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dcmhaul.toml").write_text(FILE)
    monkeypatch.setenv("DCMHAUL_NODES__OLD__PORT__X", "105")
    with pytest.raises(ConfigurationError, match="port is no table"):
        load_configuration()


def test_without_a_file_pydantic_is_not_imported() -> None:
    code = (
        "import sys; from dcmhaul.config import load_configuration; load_configuration();"
        "sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
