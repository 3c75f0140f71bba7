"""`dcmhaul find`: C-FIND, in every model."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

import click

from dcmhaul.cli.console import Level
from dcmhaul.cli.exits import Exit
from dcmhaul.cli.options import key_options, model_options, network_options, propose_option, verb
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from dcmhaul.cli.keys import Identifier
    from dcmhaul.cli.models import PlainMatches
    from dcmhaul.cli.output import Rows
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer
    from dcmhaul.net import Association
    from dcmhaul.services.extended import FindOptions
    from dcmhaul.services.query import FindResponse

__all__ = ["command"]

_EPILOG = """\b
A key is 0010,0020=V, (0010,0020)=V, 0x0010,0x0020=V, PatientID=V or a path
such as ScheduledProcedureStepSequence[0].Modality=CT. Without a value it asks
for the attribute. QUERYFILEs are DICOM files, with or without meta, or dumps
as dcmdump prints them; their elements are keys, and -k overrides them. Where
no level (0008,0052) is typed, the lowest whose unique key has a value is
added. -x= -xe -xb -xi choose the syntax of the query.

\b
Examples:
  dcmhaul find PACS@10.1.2.3:104 -S -k StudyDate=20240101- -k StudyInstanceUID
  dcmhaul find -aec RIS 10.1.2.3 104 -W -k PatientName=DOE*
"""


@verb("find", tool="findscu", epilog=_EPILOG)
@key_options
@model_options(worklist=True)
@click.option("--relational", is_flag=True, help="Propose relational queries.")
@click.option("--date-time", is_flag=True, help="Propose one range of dates and times together.")
@click.option("--fuzzy", is_flag=True, help="Propose fuzzy matching of person names.")
@click.option("--timezone", is_flag=True, help="Propose times of (0008,0201), a key to add.")
@click.option("--cancel", type=click.IntRange(1), metavar="N", help="C-CANCEL after N matches.")
@click.option("-X", "--extract", is_flag=True, help="Write matches to rsp0001.dcm, ... in -od.")
@click.option(
    "-od", "--output-directory", "folder", default=".", metavar="DIR", help="For -X [default: .]."
)
@network_options()
@propose_option
@click.option("--repeat", type=click.IntRange(1), default=1, metavar="N", help="Ask N times.")
@click.option("--abort", is_flag=True, help="End with A-ABORT instead of A-RELEASE.")
@click.argument("words", nargs=-1, metavar="PEER [QUERYFILE...]")
def command(
    session: Session,
    network: NetworkOptions,
    words: tuple[str, ...],
    keys: tuple[str, ...],
    model: str | None,
    relational: bool,
    date_time: bool,
    fuzzy: bool,
    timezone: bool,
    cancel: int | None,
    extract: bool,
    folder: str,
    propose: tuple[str, ...],
    repeat: int,
    abort: bool,
) -> None:
    """C-FIND at PEER: AET@HOST:PORT, HOST PORT (with -aec), or a node of dcmhaul.toml.

    Prints a table on a terminal; elsewhere a header and a tab-separated line for each match. With
    --json a match is a DICOM JSON object (PS3.18 Annex F).
    """
    import trio

    from dcmhaul.cli.completion import add_level, warnings
    from dcmhaul.cli.keys import columns
    from dcmhaul.cli.models import identifiers_of, quiet_pydicom
    from dcmhaul.services.extended import FindOptions

    run = _Find(session, model or "worklist")
    peer, files = session.split_peer(words, network)
    if model is None:
        session.console.warn("worklist model (default); use -S for studies")
    quiet_pydicom()
    queries = [add_level(run.model, query) for query in identifiers_of(keys, files)]
    for query in queries:
        for text in warnings(run.model, query):
            session.console.warn_once(f"warning: {text}")
        if not columns(query):
            session.console.warn_once("warning: no key is asked for; -k PatientName is one")
    run.queries = queries * repeat
    run.cancel = cancel
    run.folder = folder if extract else None
    trio.run(
        partial(
            run.run,
            session.network(network, peer),
            peer,
            propose=propose,
            options=FindOptions(
                relational=relational, date_time=date_time, fuzzy=fuzzy, timezone=timezone
            ),
            abort=abort,
        )
    )


class _Find:
    """One run: asks, prints what comes, counts."""

    def __init__(self, session: Session, model: str) -> None:
        self.session = session
        self.model = model
        self.queries: list[Identifier] = []
        self.cancel: int | None = None
        self.folder: str | None = None
        self.matches = 0
        self._files = 0
        self._started = time.perf_counter()
        session.summary_fields = lambda: {
            "matches": self.matches,
            "seconds": round(time.perf_counter() - self._started, 6),
        }

    async def run(
        self,
        network: NetworkOptions,
        peer: Peer,
        *,
        propose: tuple[str, ...],
        options: FindOptions,
        abort: bool,
    ) -> None:
        from dcmhaul.cli import models
        from dcmhaul.cli.keys import columns
        from dcmhaul.cli.network import open_peer
        from dcmhaul.cli.output import Rows

        find_uid = models.MODELS[self.model].find_uid
        async with open_peer(
            self.session,
            network,
            peer,
            (models.query_context(1, find_uid, propose),),
            extended=models.extended(find_uid, options.encode()),
        ) as association:
            self._warn_of_missing(association, find_uid, options)
            self._started = time.perf_counter()
            # One table for all queries, so that a line's columns mean the same throughout.
            asked = dict(column for query in self.queries for column in columns(query))
            rows = Rows(self.session.answer, list(asked))
            plain = models.PlainMatches(list(asked.values()))
            for query in self.queries:
                await self._ask(association, query, rows, plain)
            rows.finish()
            if abort:
                await association.abort()
        if not self.matches and not any(self.session.codes):
            self.session.code(Exit.NOTHING_MATCHED)

    def _warn_of_missing(
        self, association: Association, find_uid: str, options: FindOptions
    ) -> None:
        """What the peer did not agree to; the queries go out as they were typed."""
        answered = options.decode(association.agreement.extended.get(find_uid, b""))
        if missing := options.missing(answered):
            self.session.console.warn(
                f"warning: {association.peer} did not agree to {', '.join(missing)}"
            )

    async def _ask(
        self,
        association: Association,
        query: Identifier,
        rows: Rows,
        plain: PlainMatches,
    ) -> None:
        from dcmhaul.cli import models
        from dcmhaul.cli.completion import level_of
        from dcmhaul.cli.keys import dump_lines, encode_identifier
        from dcmhaul.services.query import find

        session = self.session
        level = level_of(query) or "no level"
        session.console.info(f"C-FIND: {self.model} model, {level}, {len(query.elements)} keys")
        session.console.debug_lines(dump_lines(query))
        async with find(
            association,
            models.MODELS[self.model],
            partial(encode_identifier, query),
            cancel_after=self.cancel,
        ) as responses:
            async for response in responses:
                session.begun = True
                if not response.pending:
                    self._final(response)
                    break
                self.matches += 1
                if session.console.level >= Level.INFO:
                    session.console.info(f"response {self.matches}: {_text(response)}")
                if self._show(response, rows, plain) and self.folder is not None:
                    self._extract(response)

    def _show(self, response: FindResponse, rows: Rows, plain: PlainMatches) -> bool:
        """One match; False where it cannot be read."""
        from dcmhaul.cli import models

        session = self.session
        answer = session.answer
        if session.console.level < Level.DEBUG and response.identifier is not None:
            data, syntax = response.identifier, response.transfer_syntax
            if answer.json_lines and (found := plain.json_object(data, syntax)) is not None:
                answer.record(found)
                return True
            if not answer.json_lines and (cells := plain.cells(data, syntax)) is not None:
                rows.add(cells)
                return True
        try:
            dataset = response.dataset()
        except ValueError as error:
            session.console.error(f"match {self.matches} cannot be read: {error}")
            session.code(Exit.PERMANENT)
            return False
        session.console.debug_lines(models.match_lines(dataset))
        if answer.json_lines:
            answer.record(models.json_object(dataset))
        else:
            rows.add([models.cell(dataset, path) for path in plain.paths])
        return True

    def _final(self, response: FindResponse) -> None:
        from dcmhaul.protocol.statuses import CANCEL, SUCCESS

        status = response.status
        text = _text(response)
        if status == SUCCESS or (status == CANCEL and self.cancel is not None):
            self.session.console.info(f"final response: {text}")
            return
        self.session.refuse(status, text)

    def _extract(self, response: FindResponse) -> None:
        """One match as a Part-10 file. The name is a number: nothing of the peer gets into it."""
        from dcmhaul import uids
        from dcmhaul.cli.models import MODELS
        from dcmhaul.wire.part10 import encode_file_meta

        self._files += 1
        path = os.path.join(self.folder or ".", f"rsp{self._files:04d}.dcm")
        meta = encode_file_meta(
            MODELS[self.model].find_uid, uids.new_uid(), response.transfer_syntax
        )
        try:
            os.makedirs(self.folder or ".", exist_ok=True)
            with open(path, "wb") as file:
                file.write(meta + (response.identifier or b""))
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from error


def _text(response: FindResponse) -> str:
    from dcmhaul.cli.responses import response_text

    return response_text(response.status, "C-FIND", response.offending, response.error_comment)
