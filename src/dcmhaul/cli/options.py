"""The options that verbs share, and how a function becomes a verb."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from dcmhaul.cli.arguments import PREFER, PROPOSE, normalise
from dcmhaul.cli.console import Level
from dcmhaul.cli.session import NetworkOptions, Session
from dcmhaul.cli.tls import pack_tls, tls_options
from dcmhaul.config import ae_title, duration_seconds, pdu_length
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

__all__ = [
    "AE_TITLE",
    "DURATION",
    "PDU_LENGTH",
    "Verb",
    "chosen_durability",
    "durable_option",
    "key_options",
    "ledger_option",
    "ledger_url",
    "metrics_option",
    "model_options",
    "network_options",
    "prefer_option",
    "propose_option",
    "server_options",
    "verb",
]


class _Checked(click.ParamType[Any]):
    """A parameter whose text a function of `config` turns into a value."""

    def __init__(self, name: str, convert: Callable[[str], Any]) -> None:
        self.name = name
        self._convert = convert

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._convert(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)


AE_TITLE = _Checked("title", ae_title)
DURATION = _Checked("duration", duration_seconds)
PDU_LENGTH = _Checked("size", pdu_length)

_LEVELS = {"fatal": 0, "error": 1, "warn": 2, "info": 3, "debug": 4, "trace": 5}


def _together(decorators: Sequence[Decorator]) -> Decorator:
    """One decorator of several; their options stand in the help in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_CALLING = click.option(
    "-aet",
    "--aetitle",
    "--aet",
    "calling_ae_title",
    type=AE_TITLE,
    metavar="TITLE",
    help="Our AE title [default: DCMHAUL].",
)
_CALLED = click.option(
    "-aec",
    "--call",
    "called_ae_title",
    type=AE_TITLE,
    metavar="TITLE",
    help="The peer's AE title [default: ANY-SCP].",
)
_LENGTH_SEND = click.option(
    "--max-send-pdu",
    "pdu_length_send_max",
    type=PDU_LENGTH,
    metavar="BYTES",
    help="Send no longer PDU, whatever the peer takes [default: 1 MiB].",
)
_LENGTH = click.option(
    "-pdu",
    "--max-pdu",
    "pdu_length_max",
    type=PDU_LENGTH,
    metavar="BYTES",
    help="Longest PDU that we receive, 4096 to 4294967295 [default: 131072; 0: no limit].",
)
_CONGESTION = click.option(
    "--congestion", metavar="ALG", help="TCP congestion control of our sockets, such as cubic."
)
_CONTEXTS = click.option(
    "+v",
    "--verbose-pc",
    "show_contexts",
    is_flag=True,
    help="Say which presentation contexts were negotiated.",
)


def _deadline(short: str, long: str, name: str, text: str) -> Decorator:
    return click.option(
        short, long, f"timeout_{name}", type=DURATION, metavar="S", help=f"{text}; 0: no limit]."
    )


_CONNECT = _deadline(
    "-to", "--timeout", "connect", "Wait for the TCP connection, and for TLS [default: 10"
)
_ASSOCIATE = _deadline("-ta", "--acse-timeout", "association", "Wait for A-ASSOCIATE [default: 30")
_PROGRESS = _deadline(
    "-ts", "--socket-timeout", "progress", "Bytes must move in a message [default: 30"
)

_LEVEL = click.Choice(list(_LEVELS), case_sensitive=False)


def _level_flag(short: str, long: str, level: str, text: str) -> Decorator:
    return click.option(short, long, "log_level", flag_value=level, type=_LEVEL, help=text)


_GENERAL = (
    click.option(
        "--config",
        "config_path",
        metavar="FILE",
        help="dcmhaul.toml to use (else $DCMHAUL_CONFIG, ./dcmhaul.toml, the user's).",
    ),
    _level_flag("-v", "--verbose", "info", "Say what happens, on stderr."),
    _level_flag("-d", "--debug", "debug", "Say everything, with tracebacks."),
    _level_flag("-q", "--quiet", "fatal", "No warnings and no errors."),
    click.option(
        "-ll",
        "--log-level",
        "log_level",
        type=_LEVEL,
        help="The same by level; warn is the default. Of several of these the last holds.",
    ),
)
_JSON = click.option(
    "--json",
    "json_lines",
    is_flag=True,
    help="NDJSON on stdout; the last line is of type summary.",
)


def network_options(
    *,
    called: bool = True,
    connects: bool = True,
    send: bool = False,
    awaited: str = "Wait for a response [default: 60",
) -> Decorator:
    """Titles, time-outs, PDU lengths, congestion control, TLS; packed into the argument `network`.

    called: there is one peer, whose title `-aec` gives. connects: `-to` means something, and the TLS flags
    are a client's. awaited: what `-td` limits.
    """
    message = _deadline("-td", "--dimse-timeout", "dimse", awaited)
    chosen = [_CALLING, *([_CALLED] if called else ()), *([_CONNECT] if connects else ())]
    chosen += [
        _ASSOCIATE,
        message,
        _PROGRESS,
        _LENGTH,
        *([_LENGTH_SEND] if send else ()),
        _CONGESTION,
        *tls_options(client=connects),
        _CONTEXTS,
    ]
    return _together(chosen)


server_options = _together(
    [
        click.option(
            "--bind", default="0.0.0.0", metavar="ADDR", help="Address [default: 0.0.0.0]."
        ),
        click.option(
            "--allow",
            multiple=True,
            metavar="AET[@HOST]",
            help="Accept this caller; repeatable [default: any caller].",
        ),
        click.option(
            "--max-associations",
            "associations_max",
            type=click.IntRange(1, 10000),
            default=100,
            show_default=True,
            help="Associations at once; one more is rejected. One in eight is for callers that are "
            "nodes of dcmhaul.toml.",
        ),
    ]
)


def model_options(*, worklist: bool) -> Decorator:
    """`-P -S -O`, and `-W` for find; the last one typed holds, as in DCMTK."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        choices = [
            ("-P", "--patient", "patient", "Patient Root model."),
            ("-S", "--study", "study", "Study Root model."),
            ("-O", "--psonly", "psonly", "Patient/Study Only model (retired)."),
        ]
        default = "worklist" if worklist else "patient"
        if worklist:
            choices.insert(0, ("-W", "--worklist", "worklist", "Modality worklist model."))
        for short, long, value, text in reversed(choices):
            note = " The default." if value == default else ""
            function = click.option(short, long, "model", flag_value=value, help=text + note)(
                function
            )
        return function

    return decorate


def key_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-k`, as often as needed."""
    return click.option(
        "-k",
        "--key",
        "keys",
        multiple=True,
        metavar="KEY[=VALUE]",
        help="A key: 0010,0020=V, PatientID=V, or a path such as "
        "ScheduledProcedureStepSequence[0].Modality=CT. Repeatable.",
    )(function)


def metrics_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--metrics`."""
    return click.option(
        "--metrics", metavar="HOST:PORT", help="Serve Prometheus text at http://HOST:PORT/metrics."
    )(function)


def own_scp_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`+P` and `--bind` of a verb that reads back; both None where they were not typed."""
    for option in (
        click.option("--bind", metavar="ADDR", help="Address for +P [default: 0.0.0.0]."),
        click.option(
            "+P",
            "--port",
            "port",
            metavar="PORT",
            help="Listen here for what a peer without C-GET is asked to send by C-MOVE to our -aet, so "
            "that contents can be compared; 0 takes a free port.",
        ),
    ):
        function = option(function)
    return function


def ledger_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--ledger`; None where it was not typed."""
    return click.option(
        "--ledger",
        metavar="URL",
        help="SQLAlchemy URL [default: $DCMHAUL_LEDGER, else ledger.db in the user's data folder].",
    )(function)


def ledger_url(session: Session, typed: str | None) -> str:
    """The ledger in force."""
    from dcmhaul.migrate.plan import default_ledger_url

    return (
        typed
        or os.environ.get("DCMHAUL_LEDGER")
        or session.configuration.ledger_url
        or default_ledger_url()
    )


def durable_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--durable`; None where it was not typed."""
    return click.option(
        "--durable",
        type=click.Choice(["each", "batch", "none"]),
        help="What 0000 promises: synced one by one, synced in batches (default), or that the bytes "
        "arrived (default with --discard).",
    )(function)


def chosen_durability(durable: str | None, *, discard: bool) -> str:
    """The mode in force; ConfigurationError where nothing is kept and yet it should be durable."""
    if discard and durable not in (None, "none"):
        raise ConfigurationError(f"--discard keeps nothing, so --durable {durable} has no meaning")
    return durable or ("none" if discard else "batch")


def propose_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-x?`; hidden, since the verb's epilog names the letters."""
    return click.option(PROPOSE, "propose", multiple=True, hidden=True)(function)


def prefer_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`+x?`; hidden, since the verb's epilog names the letters."""
    return click.option(PREFER, "prefer", multiple=True, hidden=True)(function)


class Verb(click.Command):
    """A click command whose arguments are normalised first; it returns the exit code."""

    tool: str | None = None

    def values(self) -> dict[str, int]:
        """Each spelling of an option, and how many words follow it."""
        found = {"-h": 0, "--help": 0}
        for parameter in self.params:
            if isinstance(parameter, click.Option):
                words = 0 if parameter.is_flag or parameter.count else parameter.nargs
                for spelling in (*parameter.opts, *parameter.secondary_opts):
                    found[spelling] = words
        return found

    def run(self, name: str, arguments: Sequence[str]) -> int:
        """Parses and runs; ConfigurationError and click's exceptions are the caller's."""
        words = normalise(arguments, self.values(), tool=self.tool)
        result = self.main(words, prog_name=f"dcmhaul {name}", standalone_mode=False, obj=name)
        return int(result or 0)


def _pack_network(arguments: dict[str, Any]) -> None:
    """Gathers the options of `network_options` into the argument `network`."""
    if "pdu_length_max" not in arguments:
        return
    timeouts = {}
    for name in ("connect", "association", "dimse", "progress"):
        seconds = arguments.pop(f"timeout_{name}", None)
        if seconds is not None:
            timeouts[name] = seconds or None
    arguments["network"] = NetworkOptions(
        calling_ae_title=arguments.pop("calling_ae_title"),
        called_ae_title=arguments.pop("called_ae_title", None),
        timeouts=timeouts,
        pdu_length_max=arguments.pop("pdu_length_max"),
        pdu_length_send_max=arguments.pop("pdu_length_send_max", None),
        congestion=arguments.pop("congestion"),
        tls=pack_tls(arguments),
        show_contexts=arguments.pop("show_contexts"),
    )


def verb(
    name: str, *, tool: str | None = None, epilog: str = ""
) -> Callable[[Callable[..., None]], Verb]:
    """Makes a verb of `function(session, **options)`; what it raises becomes a line and a code."""

    def decorate(function: Callable[..., None]) -> Verb:
        def callback(**arguments: Any) -> int:
            session = Session(
                str(click.get_current_context().obj or name),
                level=Level(_LEVELS[arguments.pop("log_level") or "warn"]),
                json_lines=arguments.pop("json_lines"),
                config_path=arguments.pop("config_path"),
            )
            try:
                _pack_network(arguments)
                function(session, **arguments)
            except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
                session.fail_all(error)
            return session.finish()

        callback.__doc__ = function.__doc__
        callback.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        command: Verb = click.command(
            name,
            cls=Verb,
            epilog=epilog,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        )(_together([_JSON, *_GENERAL])(callback))
        command.tool = tool
        # What is the verb's own stands first in its help, what all verbs share last.
        shared = 1 + len(_GENERAL)
        command.params = command.params[shared:] + command.params[:shared]
        return command

    return decorate
