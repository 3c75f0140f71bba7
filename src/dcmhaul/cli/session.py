"""One run of a verb: its settings, what it printed, and the exit code that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dcmhaul.cli.console import Console, Level, printable
from dcmhaul.cli.exits import Exit, for_error, for_status, worst
from dcmhaul.cli.output import Answer, StdoutFailed
from dcmhaul.cli.tls import TlsFlags, peer_tls
from dcmhaul.config import Configuration, load_configuration, split_peer
from dcmhaul.errors import ConfigurationError, DcmhaulError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dcmhaul.config import Node, Peer

__all__ = ["NetworkOptions", "Session", "leaves"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """The network options as typed; None where nothing was typed. Lengths in bytes, times in s.

    timeouts: what `-to -ta -td -ts` set, by the names of `net.types.Timeouts`; None is no limit.
    """

    calling_ae_title: str | None = None
    called_ae_title: str | None = None
    timeouts: dict[str, float | None]
    pdu_length_max: int | None = None
    pdu_length_send_max: int | None = None
    congestion: str | None = None
    tls: TlsFlags = field(default_factory=TlsFlags)
    show_contexts: bool = False

    @property
    def pdu_length_announced(self) -> int:
        """`pdu_length_max`, or what is announced where nothing was typed."""
        from dcmhaul.protocol.negotiation import PDU_LENGTH_DEFAULT

        return PDU_LENGTH_DEFAULT if self.pdu_length_max is None else self.pdu_length_max


def _typed_or_configured(typed: int | None, node: Node | None) -> int | None:
    # 0 is a length, too: it sets no limit.
    if typed is None and node is not None:
        return node.pdu_length_max
    return typed


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group, at any depth; the exception itself where it is none."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


class Session:
    """Collects codes and the summary while a verb runs; `finish` turns them into the end of it."""

    def __init__(
        self,
        name: str,
        *,
        level: Level = Level.WARN,
        json_lines: bool = False,
        config_path: str | None = None,
    ) -> None:
        self.name = name
        self.console = Console(level)
        self.answer = Answer(json_lines=json_lines)
        self.summary: dict[str, Any] = {}
        self.summary_text: Callable[[], str] | None = None
        self.summary_fields: Callable[[], dict[str, Any]] | None = None
        self.codes: list[int] = []
        self.errors: list[str] = []
        self.begun = False
        self._config_path = config_path

    @cached_property
    def configuration(self) -> Configuration:
        return load_configuration(self._config_path)

    def split_peer(self, words: Sequence[str], network: NetworkOptions) -> tuple[Peer, list[str]]:
        """The peer at the head of the positionals, as the options address it, and the rest."""
        peer, rest = split_peer(words, self.configuration)
        peer = peer.called(network.called_ae_title)
        return replace(peer, tls=peer_tls(network.tls, peer.tls)), rest

    def only_peer(self, words: Sequence[str], network: NetworkOptions) -> Peer:
        """The peer where nothing may follow it."""
        peer, rest = self.split_peer(words, network)
        if rest:
            raise ConfigurationError(f"one peer is enough, yet {printable(rest[0])!r} follows it")
        return peer

    def network(self, network: NetworkOptions, peer: Peer | None = None) -> NetworkOptions:
        """The options with what the configuration says where nothing was typed."""
        node = None
        if peer is not None and peer.name is not None:
            node = self.configuration.nodes.get(peer.name)
        return replace(
            network,
            calling_ae_title=network.calling_ae_title or self.configuration.calling_ae_title,
            timeouts={**self.configuration.timeouts, **network.timeouts},
            pdu_length_max=_typed_or_configured(network.pdu_length_max, node),
            pdu_length_send_max=_typed_or_configured(network.pdu_length_send_max, node),
        )

    def code(self, code: int) -> None:
        self.codes.append(code)

    def fail(self, error: BaseException, *, code: int | None = None) -> None:
        """Says an error in one line and remembers its exit code."""
        self.codes.append(for_error(error, begun=self.begun) if code is None else code)
        text = str(error)
        if isinstance(error, KeyboardInterrupt):
            text = "interrupted"
        elif not isinstance(error, DcmhaulError):
            text = f"{type(error).__name__}: {error} (a fault of dcmhaul; -d shows where)"
        self.errors.append(printable(text))
        self.console.error(f"dcmhaul {self.name}: {text}")
        self.console.trace_back(error)

    def refuse(self, status: int, text: str, operation: str = "") -> None:
        """Says a final status that is none of success, and remembers its exit code.

        text: what it means; operation: which of several requests it answers.
        """
        self.code(for_status(status) or Exit.PERMANENT)
        where = f"{operation}: " if operation else ""
        self.console.error(f"dcmhaul {self.name}: {where}{text}")
        self.errors.append(text)

    def fail_all(self, error: BaseException) -> None:
        """The same for what left a nursery: each different error is said once."""
        said: set[str] = set()
        for leaf in leaves(error):
            if isinstance(leaf, (BrokenPipeError, StdoutFailed)):
                # Nobody can be answered any more; sockets' errors are our own kinds.
                raise leaf
            if str(leaf) not in said or not isinstance(leaf, DcmhaulError):
                said.add(str(leaf))
                self.fail(leaf)

    def finish(self) -> Exit:
        """Prints the summary, last of all, and returns the exit code."""
        code = worst(self.codes)
        fields = self.summary | (self.summary_fields() if self.summary_fields else {})
        record: dict[str, Any] = {"type": "summary", "verb": self.name, **fields}
        record["exit_code"] = int(code)
        if self.errors:
            record["error"] = self.errors[0]
        self.answer.record(record)
        if self.summary_text is not None and self.console.level > Level.FATAL:
            self.answer.line(self.summary_text())
        return code
