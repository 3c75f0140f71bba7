"""What Python's own TLS can carry: one process sends files in 256 KiB writes, another drops them.

Blocking sockets and nothing above TLS, with the certificates, the version and the cipher that dcmhaul's
associations have: the ceiling of who uses this OpenSSL from Python.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import sys
from pathlib import Path

from bench import process

LOOPBACK = "127.0.0.1"
BUFFER_BYTES = 256 * 1024


def _context(protocol: int, papers: list[str]) -> ssl.SSLContext:
    """papers: key, certificate, authority. The cipher is the first that both ends know, AES-GCM."""
    key, certificate, authority = papers
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority)
    context.load_cert_chain(certificate, key)
    return context


def _tune(sock: socket.socket, congestion: str | None) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if congestion is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())


def send(port: int, folder: Path, papers: list[str], congestion: str | None) -> None:
    """Every file of the folder over one connection; returns when the receiver has had the last byte."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, papers)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with socket.socket() as plain:
        _tune(plain, congestion)
        plain.connect((LOOPBACK, port))
        with context.wrap_socket(plain) as secured:
            for path in sorted(folder.iterdir()):
                with path.open("rb", buffering=0) as source:
                    while got := source.readinto(buffer):
                        secured.sendall(buffer[:got])
            secured.unwrap()


def receive(port: int, papers: list[str], congestion: str | None) -> None:
    """Takes one connection after the other, until the process ends."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, papers)
    buffer = bytearray(BUFFER_BYTES)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _tune(listener, congestion)
        listener.bind((LOOPBACK, port))
        listener.listen()
        while True:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as secured:
                while secured.recv_into(buffer):
                    pass
                secured.unwrap()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tls", nargs=3, required=True, metavar=("KEY", "CERT", "CA"))
    parser.add_argument("--congestion", help="of every socket (default: the kernel's)")
    commands = parser.add_subparsers(dest="command", required=True)
    sending = commands.add_parser("send")
    sending.add_argument("port", type=int)
    sending.add_argument("folder", type=Path)
    receiving = commands.add_parser("receive")
    receiving.add_argument("port", type=int)
    asked = parser.parse_args()
    process.end_on_sigterm()
    if asked.command == "send":
        send(asked.port, asked.folder, asked.tls, asked.congestion)
    else:
        receive(asked.port, asked.tls, asked.congestion)
    return 0


if __name__ == "__main__":
    sys.exit(main())
