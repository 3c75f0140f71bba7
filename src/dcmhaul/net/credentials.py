"""Certificates, keys and trust from their files, as what a TLS connection needs. Opens no connection."""

from __future__ import annotations

import ssl
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from dcmhaul.config import TlsSettings
    from dcmhaul.net.types import SocketOptions

__all__ = ["client_context", "secured", "server_context"]

_ENCRYPTED = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")


def secured(options: SocketOptions, tls: TlsSettings | None) -> SocketOptions:
    """The options of connections to a peer with that TLS; None leaves them as they are."""
    return options if tls is None else replace(options, tls=client_context(tls))


_SERVER_MODES = {
    "require": ssl.CERT_REQUIRED,
    "verify": ssl.CERT_OPTIONAL,
    "ignore": ssl.CERT_NONE,
}


@cache
def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """What an association requestor presents and trusts; ConfigurationError where a file is of no use.

    The files are read once in the life of the process.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, settings)
    context.check_hostname = settings.check_hostname and settings.peer_certificate != "ignore"
    if settings.peer_certificate == "ignore":
        context.verify_mode = ssl.CERT_NONE
    elif not settings.ca and settings.check_hostname:
        # The system's authorities vouch for a host's name. Unless that is compared, anybody would pass.
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


@cache
def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """What an association acceptor presents, and which requestors it trusts; as `client_context`."""
    if settings.certificate is None:
        raise ConfigurationError("a TLS server needs a key and a certificate: +tls KEY CERT")
    context = _context(ssl.PROTOCOL_TLS_SERVER, settings)
    context.num_tickets = 0  # nobody resumes, and a peer that only sends would never read them
    context.verify_mode = _SERVER_MODES[settings.peer_certificate]
    return context


def _context(protocol: int, settings: TlsSettings) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 (PS3.15 B.12, BCP 195) with Python's ciphers: all with forward secrecy, none weak."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    # A certificate that the user named is trusted even if its own authority was not.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for path in settings.ca:
        _read(path)
        try:
            context.load_verify_locations(cafile=path)
        except ssl.SSLError as error:
            raise ConfigurationError(f"{path}: holds no PEM certificate to trust") from error
    if settings.certificate is not None:
        assert settings.key is not None
        _present(context, settings.key, settings.certificate)
    return context


def _present(context: ssl.SSLContext, key: str, certificate: str) -> None:
    """Loads our own key and certificate."""
    key_text, certificate_text = _read(key), _read(certificate)
    if b"-----BEGIN CERTIFICATE-----" not in certificate_text:
        swapped = (
            ": the key comes first, then the certificate" if b" KEY---" in certificate_text else ""
        )
        raise ConfigurationError(f"{certificate}: holds no PEM certificate{swapped}")
    if any(mark in key_text for mark in _ENCRYPTED):
        raise ConfigurationError(
            f"{key}: the key is encrypted, and dcmhaul asks for no password: "
            "write it in the clear for its owner alone (openssl pkey -in FILE -out FILE; chmod 600)"
        )
    if b"PRIVATE KEY-----" not in key_text:
        raise ConfigurationError(f"{key}: holds no PEM private key")
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = f"{key}: this key does not belong to the certificate {certificate}"
        else:
            text = f"{key}, {certificate}: not usable ({error.reason or error})"
        raise ConfigurationError(text) from error


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as source:
            return source.read()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
