"""Authorities and certificates for the tests of TLS, as PEM files."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trustme

from dcmhaul.config import TlsSettings

if TYPE_CHECKING:
    from pathlib import Path

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """A folder of PEM files. `ca` and `other` are authorities.

    `server` and `client` are of `ca` and name 127.0.0.1 and localhost; `elsewhere` names another host,
    `expired` was valid once, `stranger` is of `other`. Each is NAME.key and NAME.pem.
    """

    folder: Path

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def pair(self, name: str) -> tuple[str, str]:
        """Key and certificate, as `+tls` takes them."""
        return self.path(f"{name}.key"), self.path(f"{name}.pem")

    def settings(self, name: str | None, ca: str | None = "ca", **fields: object) -> TlsSettings:
        """That certificate, and trust in that authority."""
        key, certificate = (None, None) if name is None else self.pair(name)
        trusted = () if ca is None else (self.path(f"{ca}.pem"),)
        return TlsSettings(key=key, certificate=certificate, ca=trusted, **fields)  # type: ignore[arg-type]


def make_papers(folder: Path) -> Papers:
    """Writes them all."""
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    other.cert_pem.write_to_path(str(folder / "other.pem"))
    here = ("127.0.0.1", "localhost")
    for name, issuer, hosts, until in (
        ("server", ca, here, None),
        ("client", ca, here, None),
        ("elsewhere", ca, ("pacs.example",), None),
        ("expired", ca, here, LONG_AGO),
        ("stranger", other, here, None),
    ):
        start = None if until is None else until - datetime.timedelta(days=1)
        leaf = issuer.issue_cert(*hosts, common_name=name, not_before=start, not_after=until)
        leaf.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        leaf.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
    return Papers(folder=folder)
