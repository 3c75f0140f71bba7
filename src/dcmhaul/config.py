"""Peers as they are typed, and `dcmhaul.toml`; knows no network, needs pydantic only for a file."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ANY_SCP",
    "DEFAULT_AE_TITLE",
    "Configuration",
    "Node",
    "Peer",
    "TlsSettings",
    "ae_title",
    "duration_seconds",
    "find_configuration",
    "load_configuration",
    "parse_peer",
    "pdu_length",
    "port_number",
    "size_bytes",
    "split_peer",
]

DEFAULT_AE_TITLE = "DCMHAUL"
ANY_SCP = "ANY-SCP"

# A P-DATA-TF says its length in four octets; no less is announced than DCMTK takes.
PDU_LENGTH_MIN = 4096
PDU_LENGTH_MAX = (1 << 32) - 1

# What an environment variable may override: DCMHAUL_NODES__OLD__PORT=105. The double underscore
# keeps DCMHAUL_CONFIG and DCMHAUL_LEDGER apart.
_ENVIRONMENT_PREFIX = "DCMHAUL_"
_ENVIRONMENT_SECTIONS = ("defaults", "nodes", "receive", "ledger", "storage")

_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1, "k": 1024, "kib": 1024, "m": 1024**2, "mib": 1024**2, "g": 1024**3}


def ae_title(text: str) -> str:
    """An AE title (PS3.5 §6.2, VR AE): 1 to 16 printable ASCII characters, no backslash."""
    title = text.strip(" ")
    if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ConfigurationError(
            f"an AE title has 1 to 16 printable ASCII characters and no backslash, not {text!r}"
        )
    return title


def port_number(text: str | int) -> int:
    """A TCP port to connect to, 1-65535."""
    digits = str(text)
    if not (digits.isascii() and digits.isdigit() and 1 <= int(digits) <= 65535):
        raise ConfigurationError(f"a port is a number from 1 to 65535, not {digits!r}")
    return int(digits)


def duration_seconds(value: str | float) -> float:
    """Seconds of a number or of a text such as `500ms`, `10s`, `5m`, `1h`."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", str(value).lower())
    if match is None or match[2] not in _SECONDS:
        raise ConfigurationError(f"a duration is a number with s, ms, m, h or d, not {value!r}")
    return float(match[1]) * _SECONDS[match[2]]


def size_bytes(value: str | int) -> int:
    """Bytes of a number or of a text such as `65536`, `64k`, `1MiB`; k and M are powers of 1024."""
    match = re.fullmatch(r"\s*([0-9]+)\s*([a-z]*)\s*", str(value).lower())
    if match is None or match[2] not in _BYTES:
        raise ConfigurationError(f"a size is a number of bytes with k, M or G, not {value!r}")
    return int(match[1]) * _BYTES[match[2]]


def pdu_length(value: str | int) -> int:
    """The maximum length of a P-DATA-TF: a size of 4096 bytes or more that its four octets hold, or 0,
    which sets no limit (PS3.8 §D.1).
    """
    length = size_bytes(value)
    if length and not PDU_LENGTH_MIN <= length <= PDU_LENGTH_MAX:
        raise ConfigurationError(
            f"a PDU length is {PDU_LENGTH_MIN} to {PDU_LENGTH_MAX} bytes, or 0 for no limit, not {value}"
        )
    return length


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """How TLS is spoken; paths of PEM files.

    key, certificate: our own, both or neither. ca: whose certificates are trusted; () is nobody's, or the
    system's where the host is checked. check_hostname: the peer's certificate must name the host that we
    connect to. peer_certificate: `require`, `verify` (where a requestor presents one) or `ignore`.
    """

    key: str | None = None
    certificate: str | None = None
    ca: tuple[str, ...] = ()
    check_hostname: bool = True
    peer_certificate: Literal["require", "verify", "ignore"] = "require"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Whom to talk to. `ae_title` is None where none was typed; `name` is that of a node.

    tls: None is plain TCP. It does not make another peer of it.
    """

    host: str
    port: int
    ae_title: str | None = None
    name: str | None = None
    tls: TlsSettings | None = field(default=None, compare=False)

    @property
    def address(self) -> str:
        """`host:port`, IPv6 in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.ae_title or ANY_SCP}@{self.address}"

    def called(self, title: str | None) -> Peer:
        """This peer under the title of `-aec`, where one was given."""
        return self if title is None else replace(self, ae_title=title)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One `[nodes.NAME]` of the configuration; sizes in bytes, None where the file says nothing."""

    name: str
    host: str
    port: int
    ae_title: str
    associations_max: int | None = None
    pdu_length_max: int | None = None
    window: tuple[int, int] | None = None
    tls: TlsSettings | None = None

    @property
    def peer(self) -> Peer:
        return Peer(
            host=self.host, port=self.port, ae_title=self.ae_title, name=self.name, tls=self.tls
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What `dcmhaul.toml` says.

    timeouts: seconds, by the names of `net.types.Timeouts`; None means no limit.
    """

    path: Path | None = None
    calling_ae_title: str = DEFAULT_AE_TITLE
    timeouts: Mapping[str, float | None] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    receive_ae_title: str | None = None
    receive_port: int | None = None
    receive_tls: TlsSettings | None = None
    ledger_url: str | None = None
    extra_storage_classes: tuple[str, ...] = ()

    def node(self, name: str) -> Node:
        """The node of that name; ConfigurationError names those that exist."""
        try:
            return self.nodes[name]
        except KeyError:
            where = self.path or "no dcmhaul.toml was found"
            known = ", ".join(sorted(self.nodes)) or "none"
            raise ConfigurationError(
                f"{name!r} is not AET@HOST:PORT, not HOST PORT, and no node of the configuration "
                f"({where}; nodes: {known})"
            ) from None


def _split_host_port(text: str, whole: str) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or colon != ":":
            raise ConfigurationError(f"a peer is AET@[IPV6]:PORT, not {whole!r}")
    else:
        host, colon, port = text.rpartition(":")
        if not colon:
            raise ConfigurationError(f"a peer is AET@HOST:PORT; the port is missing in {whole!r}")
        if ":" in host:
            raise ConfigurationError(
                f"an IPv6 address stands in brackets: AET@[IPV6]:PORT, not {whole!r}"
            )
    if not host:
        raise ConfigurationError(f"a peer is AET@HOST:PORT; the host is missing in {whole!r}")
    return host, port_number(port)


def parse_peer(text: str, configuration: Configuration) -> Peer:
    """AET@HOST:PORT, split at the last `@`; anything else is the name of a node."""
    if "@" not in text:
        return configuration.node(text).peer
    title, _, address = text.rpartition("@")
    host, port = _split_host_port(address, text)
    return Peer(host=host, port=port, ae_title=ae_title(title))


def split_peer(arguments: Sequence[str], configuration: Configuration) -> tuple[Peer, list[str]]:
    """The peer at the head of positionals, and the rest: AET@HOST:PORT, HOST PORT, or NAME."""
    if not arguments:
        raise ConfigurationError("a peer is missing: AET@HOST:PORT, HOST PORT, or a node's name")
    first = arguments[0]
    if "@" not in first and len(arguments) > 1:
        second = arguments[1]
        if second.isascii() and second.isdigit() and 1 <= int(second) <= 65535:
            return Peer(host=first.strip("[]"), port=int(second)), list(arguments[2:])
    return parse_peer(first, configuration), list(arguments[1:])


def find_configuration(explicit: str | None = None) -> Path | None:
    """`--config`, else $DCMHAUL_CONFIG, else ./dcmhaul.toml, else the user's, else None."""
    named = ((explicit, "--config"), (os.environ.get("DCMHAUL_CONFIG"), "$DCMHAUL_CONFIG"))
    for text, origin in named:
        if text:
            if not Path(text).is_file():
                raise ConfigurationError(f"{origin}: there is no file {text!r}")
            return Path(text)
    base = os.environ.get("XDG_CONFIG_HOME")
    folder = Path(base) if base else Path("~/.config").expanduser()
    for path in (Path("dcmhaul.toml"), folder / "dcmhaul" / "dcmhaul.toml"):
        if path.is_file():
            return path
    return None


def load_configuration(explicit: str | None = None) -> Configuration:
    """The configuration in force; ConfigurationError lists all faults of the file."""
    path = find_configuration(explicit)
    overrides = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_ENVIRONMENT_PREFIX) and "__" in name
    }
    if path is None and not overrides:
        return Configuration()
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: not TOML: {error}") from error
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from error
    _apply_environment(raw, overrides)
    return _validated(raw, path)


def _apply_environment(raw: dict[str, Any], overrides: Mapping[str, str]) -> None:
    """Puts DCMHAUL_SECTION__NAME__KEY=VALUE into `raw`; names match in any case."""
    for variable, value in sorted(overrides.items()):
        parts = variable.removeprefix(_ENVIRONMENT_PREFIX).lower().split("__")
        if parts[0] not in _ENVIRONMENT_SECTIONS or not all(parts):
            continue
        table = raw
        for part in parts[:-1]:
            existing = {key.lower(): key for key in table}
            inner = table.setdefault(existing.get(part, part), {})
            if not isinstance(inner, dict):
                raise ConfigurationError(f"{variable}: {part} is no table in the configuration")
            table = inner
        existing = {key.lower(): key for key in table}
        table[existing.get(parts[-1], parts[-1])] = value


def _validated(raw: dict[str, Any], path: Path | None) -> Configuration:
    # pydantic takes longer to import than an echo takes as a whole, so only a file costs it.
    from pydantic import ValidationError

    from dcmhaul._config_schema import FileTable

    try:
        checked = FileTable.model_validate(raw)
    except ValidationError as error:
        where = str(path) if path is not None else "environment"
        faults = [
            ".".join(str(part) for part in fault["loc"])
            + ": "
            + (
                "this version knows no such key"
                if fault["type"] == "extra_forbidden"
                else fault["msg"].removeprefix("Value error, ")
            )
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise ConfigurationError(f"{where}: " + "; ".join(faults)) from error
    folder = path.parent if path is not None else Path()
    receive = checked.receive
    nodes = {
        name: Node(
            name=name,
            host=node.host,
            port=node.port,
            ae_title=node.ae,
            associations_max=node.max_associations,
            pdu_length_max=node.max_pdu,
            window=node.window,
            tls=None if node.tls is None else node.tls.settings(folder),
        )
        for name, node in checked.nodes.items()
    }
    return Configuration(
        path=path,
        calling_ae_title=checked.defaults.calling_ae or DEFAULT_AE_TITLE,
        timeouts=checked.defaults.timeout.model_dump(exclude_unset=True),
        nodes=nodes,
        receive_ae_title=receive.ae,
        receive_port=receive.port,
        receive_tls=None if receive.tls is None else receive.tls.settings(folder),
        ledger_url=checked.ledger.url,
        extra_storage_classes=tuple(checked.storage.classes),
    )
