"""`dcmhaul commit`: has a peer promise to keep instances (Storage Commitment Push, PS3.4 Annex J)."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import click

from dcmhaul.cli.exits import Exit
from dcmhaul.cli.options import network_options, verb
from dcmhaul.config import DEFAULT_AE_TITLE
from dcmhaul.errors import AssociationAborted, ConfigurationError, DcmhaulError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer
    from dcmhaul.net import Association
    from dcmhaul.objects.sources import FailedEntry, SkippedEntry
    from dcmhaul.services.commitment import Commitments, Reference, Transaction

__all__ = ["command"]

WAIT_SECONDS = 300.0
"""How long a result is waited for, where no -td was typed."""
REFERENCES_MAX = 1000
"""Instances of one request; more make several."""

_EPILOG = """\b
PATHs are files and folders, with their subfolders: what is committed are the
instances that they hold, by their UIDs. Without +P the result is waited for on
the association of the request; with +P the association ends and PEER opens one
to that port, where it must know us by our -aet. -td says how long is waited
[default: 300].
Exit code: 0 all are committed, 6 some are not, 5 there was no result.

\b
Examples:
  dcmhaul commit PACS@10.1.2.3:104 ./studies
  dcmhaul commit PACS@10.1.2.3:104 ./studies -aet OURS +P 11112
"""


@verb("commit", epilog=_EPILOG)
@network_options()
@click.option("+P", "--port", "port", metavar="PORT", help="Wait for the result on this port.")
@click.option("--bind", metavar="ADDR", help="Address to receive on [default: 0.0.0.0].")
@click.argument("words", nargs=-1, metavar="PEER PATH...")
def command(
    session: Session,
    network: NetworkOptions,
    words: tuple[str, ...],
    port: str | None,
    bind: str | None,
) -> None:
    """Storage commitment of the instances in PATHs by PEER.

    PEER is AET@HOST:PORT, HOST PORT (with -aec), or a node of dcmhaul.toml.
    """
    import trio

    from dcmhaul.cli.models import quiet_pydicom
    from dcmhaul.cli.send import check_paths

    quiet_pydicom()
    if bind and not port:
        raise ConfigurationError("--bind is about the result's port: give +P PORT too")
    session.summary = {"committed": 0, "failed": 0, "unanswered": 0, "skipped": 0}
    peer, paths = session.split_peer(words, network)
    check_paths(session, paths, folders=True)
    run = _Commit(session, session.network(network, peer), peer, port, bind)
    trio.run(run.run, paths)


class _Commit:
    """One run: reads the UIDs, requests, waits, tells."""

    def __init__(
        self,
        session: Session,
        network: NetworkOptions,
        peer: Peer,
        port: str | None,
        bind: str | None,
    ) -> None:
        self.session = session
        self.network = network
        self.peer = peer
        self.port = port
        self.bind = bind

    async def run(self, paths: Sequence[str]) -> None:
        """All requests, and all results."""
        import trio

        from dcmhaul.services.commitment import Commitments

        references = await trio.to_thread.run_sync(self._references, paths)
        if not references:
            if not any(self.session.codes):
                self.session.code(Exit.NOTHING_MATCHED)
                self.session.console.error("dcmhaul commit: no DICOM instance in these paths")
            return
        commitments = Commitments()
        transactions = [
            commitments.begin(references[start : start + REFERENCES_MAX])
            for start in range(0, len(references), REFERENCES_MAX)
        ]
        try:
            if self.port:
                await self._by_port(commitments, transactions, self.port)
            else:
                await self._by_association(commitments, transactions)
        except DcmhaulError as error:
            self.session.fail(error)
        for transaction in transactions:
            self._tell(transaction)
        counts = self.session.summary
        others = [f"{counts[kind]} {kind}" for kind in ("failed", "unanswered") if counts[kind]]
        told = ", ".join((f"{counts['committed']} instances committed", *others))
        self.session.console.warn(told)

    def _references(self, paths: Sequence[str]) -> list[Reference]:
        from dcmhaul.objects.part10 import FileInstance
        from dcmhaul.objects.sources import open_entries

        found: dict[str, str] = {}
        for entry in open_entries(paths):
            if isinstance(entry, FileInstance):
                entry.close()
                found.setdefault(entry.sop_instance_uid, entry.sop_class_uid)
            else:
                self._left_out(entry)
        return [(sop_class, uid) for uid, sop_class in found.items()]

    def _left_out(self, entry: SkippedEntry | FailedEntry) -> None:
        from dcmhaul.objects.sources import SkippedEntry

        if isinstance(entry, SkippedEntry):
            self.session.summary["skipped"] += 1
            self.session.console.warn(f"skipped: {entry.path}: {entry.reason}")
            return
        self.session.summary["failed"] += 1
        self.session.code(Exit.PERMANENT)
        self.session.console.error(f"failed: {entry.path}: {entry.error}")

    # -- requests -------------------------------------------------------------------------------

    async def _by_association(
        self, commitments: Commitments, transactions: Sequence[Transaction]
    ) -> None:
        """The results come on the association of the requests, which stays open for them."""
        import trio

        from dcmhaul.services.normalized import NormalizedScp
        from dcmhaul.services.provider import serve_until

        services = [NormalizedScp([commitments.sop_class])]
        async with self._associated() as association:
            asked = await self._request(association, transactions, commitments)
            with trio.move_on_after(self._seconds()), suppress(AssociationAborted):
                # Where the peer ends the association it has no result for us on it.
                for transaction in asked:
                    await serve_until(association, services, transaction.done)

    async def _by_port(
        self, commitments: Commitments, transactions: Sequence[Transaction], port: str
    ) -> None:
        """The results come on associations that the peer opens."""
        import trio

        from dcmhaul.cli.server import listening_scp
        from dcmhaul.services.normalized import NormalizedScp

        services = [NormalizedScp([commitments.sop_class])]
        async with listening_scp(self.session, self.network, services, port, self.bind):
            async with self._associated() as association:
                asked = await self._request(association, transactions, commitments)
            with trio.move_on_after(self._seconds()):
                for transaction in asked:
                    await transaction.done.wait()

    @asynccontextmanager
    async def _associated(self) -> AsyncIterator[Association]:
        """An association as SCU; events on it come from the SCP of the class, as everywhere."""
        from dcmhaul import uids
        from dcmhaul.cli.models import query_context
        from dcmhaul.cli.network import open_peer

        contexts = (query_context(1, uids.STORAGE_COMMITMENT_PUSH, ()),)
        async with open_peer(self.session, self.network, self.peer, contexts) as association:
            yield association

    async def _request(
        self,
        association: Association,
        transactions: Sequence[Transaction],
        commitments: Commitments,
    ) -> list[Transaction]:
        """Requests all; those that the peer took."""
        from dcmhaul.cli.responses import normalized_text
        from dcmhaul.services.commitment import request_commitment
        from dcmhaul.services.normalized import NormalizedScp

        console = self.session.console
        services = [NormalizedScp([commitments.sop_class])]
        asked = []
        for transaction in transactions:
            console.info(f"N-ACTION-RQ: {len(transaction.references)} instances, {transaction.uid}")
            response = await request_commitment(association, transaction, services)
            self.session.begun = True
            text = normalized_text(response, "N-ACTION")
            console.info(f"N-ACTION-RSP: {text}")
            if response.status == 0:
                asked.append(transaction)
                continue
            self.session.refuse(response.status, text)
        return asked

    def _seconds(self) -> float:
        return self.network.timeouts.get("dimse") or WAIT_SECONDS

    @property
    def _title(self) -> str:
        return self.network.calling_ae_title or DEFAULT_AE_TITLE

    # -- results --------------------------------------------------------------------------------

    def _tell(self, transaction: Transaction) -> None:
        """What became of each instance: a line for what is not committed, a record for each."""
        from dcmhaul.protocol.statuses import describe

        session = self.session
        for _, uid in transaction.references:
            reason = transaction.outcomes.get(uid)
            if reason == 0:
                session.summary["committed"] += 1
                session.answer.record({"type": "committed", "sop_instance_uid": uid})
                continue
            kind = "unanswered" if reason is None else "failed"
            session.summary[kind] += 1
            session.code(Exit.RETRYABLE if reason is None else Exit.PERMANENT)
            text = "no result" if reason is None else describe(reason, "STORAGE-COMMITMENT")
            record = {"type": kind, "sop_instance_uid": uid}
            if reason is not None:
                record["reason"] = f"{reason:04X}"
            session.answer.record(record)
            if reason is not None:
                session.answer.line(f"{uid}: {text}")
        if transaction.open:
            after = "in the result" if transaction.done.is_set() else "within the time"
            hint = (
                ""
                if self.port or transaction.done.is_set()
                else (
                    f"; it may answer on an association of its own: +P PORT, where {self.peer} must know "
                    f"{self._title}"
                )
            )
            text = f"{len(transaction.open)} instances were not spoken of {after}{hint}"
            session.console.error(f"dcmhaul commit: {text}")
            session.errors.append(text)
