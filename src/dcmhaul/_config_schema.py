"""What `dcmhaul.toml` may hold, as pydantic models; `config` imports it only to check a file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from dcmhaul.config import TlsSettings, ae_title, duration_seconds, pdu_length, port_number
from dcmhaul.errors import ConfigurationError
from dcmhaul.uids import is_valid_uid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["FileTable"]

T = TypeVar("T")
R = TypeVar("R")


def _checked(function: Callable[[T], R]) -> Callable[[T], R]:
    """The function with its ConfigurationError as the ValueError that pydantic collects."""

    def check(value: T) -> R:
        try:
            return function(value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    return check


def _timeout(value: str | float) -> float | None:
    # 0 switches a deadline off, as on the command line.
    return duration_seconds(value) or None


def _uid(value: str) -> str:
    if not is_valid_uid(value):
        raise ValueError(f"a UID has 1 to 64 digits and dots, not {value!r}")
    return value


def _node_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", value):
        raise ValueError("a node's name has up to 32 letters, digits, '_', '-' or '.'")
    return value


Title = Annotated[str, AfterValidator(_checked(ae_title))]
Port = Annotated[int, BeforeValidator(_checked(port_number))]
PduLength = Annotated[int, BeforeValidator(_checked(pdu_length))]
Seconds = Annotated[float | None, BeforeValidator(_checked(_timeout))]
Count = Annotated[int, Field(ge=1, le=1024)]
FilePath = Annotated[str, Field(min_length=1)]
Uid = Annotated[str, AfterValidator(_uid)]
NodeName = Annotated[str, AfterValidator(_node_name)]


class Table(BaseModel):
    """A key that is not known is refused: a misspelt limit, or a misspelt `tls`, must not be ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TimeoutTable(Table):
    connect: Seconds = None
    association: Seconds = None
    dimse: Seconds = None
    progress: Seconds = None
    release: Seconds = None
    idle: Seconds = None


class DefaultsTable(Table):
    calling_ae: Title | None = None
    timeout: TimeoutTable = TimeoutTable()


class KeyTable(Table):
    file: FilePath


class TlsTable(Table):
    """`key` is a secret, so it can be written as a reference: `key = {file = PATH}`."""

    ca: FilePath | tuple[FilePath, ...] = ()
    cert: FilePath | None = None
    key: FilePath | KeyTable | None = None

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together: one of them is missing")
        return self

    def _settings(self, folder: Path, **others: Any) -> TlsSettings:
        """With paths that are relative to `folder` resolved."""
        authorities = (self.ca,) if isinstance(self.ca, str) else self.ca
        key = self.key.file if isinstance(self.key, KeyTable) else self.key
        return TlsSettings(
            key=key and str(folder / key),
            certificate=self.cert and str(folder / self.cert),
            ca=tuple(str(folder / path) for path in authorities),
            **others,
        )


class NodeTlsTable(TlsTable):
    check_hostname: bool = True

    def settings(self, folder: Path) -> TlsSettings:
        return self._settings(folder, check_hostname=self.check_hostname)


class ReceiveTlsTable(TlsTable):
    client_certificate: Literal["require", "verify", "ignore"] = "require"

    def settings(self, folder: Path) -> TlsSettings:
        return self._settings(folder, peer_certificate=self.client_certificate)


class NodeTable(Table):
    host: Annotated[str, Field(min_length=1)]
    port: Port
    ae: Title
    max_associations: Count | None = None
    max_pdu: PduLength | None = None
    window: tuple[Count, Count] | None = None
    tls: NodeTlsTable | None = None


class ReceiveTable(Table):
    ae: Title | None = None
    port: Port | None = None
    tls: ReceiveTlsTable | None = None


class LedgerTable(Table):
    url: Annotated[str, Field(min_length=1)] | None = None


class StorageTable(Table):
    classes: tuple[Uid, ...] = ()


class FileTable(Table):
    defaults: DefaultsTable = DefaultsTable()
    nodes: dict[NodeName, NodeTable] = {}
    receive: ReceiveTable = ReceiveTable()
    ledger: LedgerTable = LedgerTable()
    storage: StorageTable = StorageTable()
