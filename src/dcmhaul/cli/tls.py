"""The TLS flags, and what they and the configuration together mean for one peer or one server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import click

from dcmhaul.config import TlsSettings
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

__all__ = ["TlsFlags", "pack_tls", "peer_tls", "server_tls", "tls_options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFlags:
    """The flags as typed; None where one was not."""

    key_pair: tuple[str, str] | None = None
    anonymous: bool = False
    trusted: tuple[str, ...] = ()
    peer_certificate: Literal["require", "verify", "ignore"] | None = None
    check_hostname: bool = False

    def onto(self, configured: TlsSettings | None) -> TlsSettings | None:
        """The configured settings with what was typed in place of theirs; None is plain TCP."""
        if self.key_pair is not None and self.anonymous:
            raise ConfigurationError(
                "+tls and +tla contradict each other: with or without a certificate"
            )
        if configured is None and self.key_pair is None and not self.anonymous:
            typed = (
                ("+cf", self.trusted),
                ("-rc, -vc or -ic", self.peer_certificate),
                ("--check-hostname", self.check_hostname),
            )
            for name, value in typed:
                if value:
                    raise ConfigurationError(
                        f"{name} needs TLS, which +tls KEY CERT or +tla asks for"
                    )
            return None
        # As in DCMTK, flags alone do not compare the host's name with the certificate.
        settings = configured or TlsSettings(check_hostname=False)
        if self.key_pair is not None:
            settings = replace(settings, key=self.key_pair[0], certificate=self.key_pair[1])
        if self.anonymous:
            settings = replace(settings, key=None, certificate=None)
        if self.trusted:
            settings = replace(settings, ca=self.trusted)
        if self.peer_certificate is not None:
            settings = replace(settings, peer_certificate=self.peer_certificate)
        if self.check_hostname:
            settings = replace(settings, check_hostname=True)
        return settings


def peer_tls(flags: TlsFlags, configured: TlsSettings | None) -> TlsSettings | None:
    """TLS to one peer; ConfigurationError where its files are of no use."""
    settings = flags.onto(configured)
    if settings is not None:
        from dcmhaul.net.credentials import client_context

        client_context(settings)
    return settings


def server_tls(
    flags: TlsFlags, configured: TlsSettings | None, warn: Callable[[str], None]
) -> ssl.SSLContext | None:
    """What a server's TLS presents and trusts, or None; ConfigurationError as `peer_tls`."""
    settings = flags.onto(configured)
    if settings is None:
        return None
    if settings.peer_certificate == "require" and not settings.ca:
        warn(
            "every caller will be refused: +cf FILE names the authority that signs their certificates; "
            "-vc takes callers without one, -ic checks none"
        )
    from dcmhaul.net.credentials import server_context

    return server_context(settings)


def tls_options(*, client: bool) -> list[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """The options, in the order of the help. client: they are for connections that we open."""
    whom = "the peer's" if client else "a caller's"
    pair = click.option(
        "+tls",
        "--enable-tls",
        "tls_key_pair",
        nargs=2,
        metavar="KEY CERT",
        help="TLS with this key and certificate (PEM files).",
    )
    anonymous = click.option(
        "+tla",
        "--anonymous-tls",
        "tls_anonymous",
        is_flag=True,
        help="TLS without a certificate of ours.",
    )
    trusted = click.option(
        "+cf",
        "--add-cert-file",
        "tls_trusted",
        multiple=True,
        metavar="FILE",
        help="Trust the certificates of this PEM file; repeatable.",
    )
    checks = [
        click.option(short, long, "tls_peer_certificate", flag_value=value, help=text)
        for short, long, value, text in (
            (
                "-rc",
                "--require-peer-cert",
                "require",
                f"Require and check {whom} certificate (default).",
            ),
            (
                "-vc",
                "--verify-peer-cert",
                "verify",
                f"Check {whom} certificate where there is one.",
            ),
            ("-ic", "--ignore-peer-cert", "ignore", f"Do not check {whom} certificate."),
        )
    ]
    hostname = click.option(
        "--check-hostname",
        "tls_check_hostname",
        is_flag=True,
        help="The peer's certificate must name its host.",
    )
    if client:
        return [pair, anonymous, trusted, *checks, hostname]
    return [pair, trusted, *checks]


def pack_tls(arguments: dict[str, Any]) -> TlsFlags:
    """Takes the flags out of a verb's arguments."""
    return TlsFlags(
        key_pair=arguments.pop("tls_key_pair"),
        anonymous=arguments.pop("tls_anonymous", False),
        trusted=arguments.pop("tls_trusted"),
        peer_certificate=arguments.pop("tls_peer_certificate"),
        check_hostname=arguments.pop("tls_check_hostname", False),
    )
