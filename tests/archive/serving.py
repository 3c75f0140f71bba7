"""An archive behind a real socket, and what a client does with it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from dcmhaul import uids
from dcmhaul.archive import Archive, open_archive
from dcmhaul.net import Association, open_association, serve_associations
from dcmhaul.objects.part10 import open_instance
from dcmhaul.protocol.negotiation import AssociationRequest, plan_contexts
from dcmhaul.services.extended import BASELINE, FindOptions
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.query import QueryModel, find
from dcmhaul.services.retrieve import storage_roles
from dcmhaul.services.storage import StorageScu, StoreOutcome
from dcmhaul.wire.items import PresentationContextRq, SopClassExtendedNegotiation
from tests.archive.made import decode, encode
from tests.archive.test_query import query

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from pathlib import Path

    from pydicom.dataset import Dataset

    from dcmhaul.objects.instances import OutgoingInstance

AE_TITLE = "HELD"


@dataclass(slots=True)
class Served:
    """A running archive; `port` is on the loopback."""

    archive: Archive
    port: int

    @asynccontextmanager
    async def associate(
        self,
        contexts: Iterable[tuple[str, str]],
        *,
        window: int = 1,
        get_classes: Sequence[str] = (),
        calling_ae_title: str = "TESTER",
        extended: Mapping[str, bytes] | None = None,
    ) -> AsyncIterator[Association]:
        """contexts: abstract and transfer syntax; get_classes: those of which we are the SCP.

        extended: what is asked by extended negotiation, by class.
        """
        request = AssociationRequest(
            called_ae_title=AE_TITLE,
            calling_ae_title=calling_ae_title,
            contexts=tuple(
                PresentationContextRq(
                    context_id=2 * n + 1, abstract_syntax=uid, transfer_syntaxes=(syntax,)
                )
                for n, (uid, syntax) in enumerate(dict.fromkeys(contexts))
            ),
            window=window,
            roles=storage_roles(get_classes),
            extended=tuple(
                SopClassExtendedNegotiation(sop_class_uid=uid, information=information)
                for uid, information in (extended or {}).items()
            ),
        )
        async with open_association("127.0.0.1", self.port, request) as association:
            yield association

    async def find(
        self,
        level: str | None,
        *,
        model: QueryModel = QueryModel.STUDY_ROOT,
        syntax: str = uids.EXPLICIT_VR_LITTLE_ENDIAN,
        options: FindOptions = BASELINE,
        **keys: Any,
    ) -> tuple[list[Dataset], int]:
        """The matches, and the final status."""
        asked = {model.find_uid: options.encode()} if options != BASELINE else None
        async with (
            self.associate([(model.find_uid, syntax)], extended=asked) as association,
            find(association, model, encode(query(level, **keys), syntax)) as responses,
        ):
            found = [r async for r in responses]
        assert all(r.pending for r in found[:-1])
        return [decode(r.identifier or b"", syntax) for r in found[:-1]], found[-1].status


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[Served]:
    """Opens an archive in `folder` and serves it until the block ends."""
    matches_max = options.pop("matches_max", None)
    policy_fields = options.pop("policy", {})
    port = options.pop("port", 0)
    async with open_archive(folder, ae_title=AE_TITLE, **options) as archive:
        services = archive.services(matches_max=matches_max)
        policy = acceptor_policy(services, ae_title=AE_TITLE, **policy_fields)

        async def handler(association: Association) -> None:
            await serve_services(association, services)

        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
                await serve_associations(
                    handler, policy, host="127.0.0.1", port=port, task_status=task_status
                )

            ((_, port),) = await nursery.start(serve)
            yield Served(archive, port)
            nursery.cancel_scope.cancel()


async def send(
    served: Served, paths: Iterable[str | os.PathLike[str]], *, window: int = 1
) -> list[StoreOutcome]:
    """Sends files, on as many associations as their contexts take."""
    instances = [open_instance(path) for path in paths]
    outcomes: list[StoreOutcome] = []
    pairs = dict.fromkeys((i.sop_class_uid, i.transfer_syntax_uid) for i in instances)
    for contexts in plan_contexts(pairs):
        pairs_here = [(c.abstract_syntax, c.transfer_syntaxes[0]) for c in contexts]
        mine = iter(
            [i for i in instances if (i.sop_class_uid, i.transfer_syntax_uid) in pairs_here]
        )

        async def take(mine: Any = mine) -> OutgoingInstance | None:
            await trio.lowlevel.checkpoint()
            return next(mine, None)

        async with served.associate(pairs_here, window=window) as association:
            await StorageScu(association).run(take, outcomes.append)
    for instance in instances:
        instance.close()
    return outcomes
