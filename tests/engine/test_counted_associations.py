"""Counters on real associations: what both ends count agrees, also while they are open."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from dcmhaul import uids
from dcmhaul.engine.counters import Counters
from dcmhaul.errors import AssociationRejected
from dcmhaul.net import open_association, serve_associations
from dcmhaul.objects.sinks import DiscardSink
from dcmhaul.protocol.dimse import CStoreRq
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.storage import StorageScp
from dcmhaul.services.verification import VerificationScp, echo
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from dcmhaul.net import Association
    from dcmhaul.objects.instances import IncomingInstance
    from dcmhaul.services.provider import Service

CT = "1.2.840.10008.5.1.4.1.1.2"
SYNTAX = uids.EXPLICIT_VR_LITTLE_ENDIAN
Samples = dict[tuple[str, ...], object]


def nonzero(counters: Counters, name: str) -> Samples:
    family = next(family for family in counters.families() if family.name == name)
    return {labels: value for labels, value in family.samples if value}


def request(called: str = "THERE") -> AssociationRequest:
    return AssociationRequest(
        called_ae_title=called,
        calling_ae_title="HERE",
        contexts=tuple(
            PresentationContextRq(
                context_id=number, abstract_syntax=uid, transfer_syntaxes=(SYNTAX,)
            )
            for number, uid in ((1, CT), (3, uids.VERIFICATION))
        ),
    )


async def store(association: Association, dataset: bytes) -> None:
    message_id = association.next_message_id()
    rq = CStoreRq(
        message_id=message_id, affected_sop_class_uid=CT, affected_sop_instance_uid="1.2.3"
    )
    association.queue(1, rq, dataset)
    await association.flush()
    assert await association.receive() is not None


def discard(_: IncomingInstance) -> DiscardSink:
    return DiscardSink()


async def test_both_ends_count_the_same() -> None:
    mine, theirs = Counters(["server"]), Counters(["client"])
    services: list[Service] = [VerificationScp(), StorageScp(discard)]
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(
            partial(
                serve_associations,
                partial(_serve, services),
                acceptor_policy(services, ae_title="THERE"),
                host="127.0.0.1",
                port=0,
                observer=theirs.observer("client"),
            )
        )
        host, port = addresses[0]
        observer = mine.observer("server")
        async with open_association(host, port, request(), observer=observer) as association:
            assert await echo(association) == 0
            await store(association, bytes(100_000))
            # Nothing is closed yet, and all of it is counted.
            assert nonzero(mine, "bytes") == {("server", "out"): 100_000}
            assert nonzero(theirs, "bytes") == {("client", "in"): 100_000}
            assert nonzero(mine, "associations") == {("server", "requestor", "open"): 1}
            assert nonzero(theirs, "associations") == {("client", "acceptor", "open"): 1}
        with pytest.raises(AssociationRejected):
            async with open_association(host, port, request("NOBODY"), observer=observer):
                pass
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert nonzero(mine, "bytes") == {("server", "out"): 100_000}
    assert nonzero(theirs, "bytes") == {("client", "in"): 100_000}
    assert nonzero(mine, "associations") == nonzero(theirs, "associations") == {}
    assert nonzero(theirs, "instances") == {("client", "in", "success"): 1}
    assert nonzero(mine, "dimse_requests") == {("server", "C-ECHO", "success"): 1}
    assert nonzero(theirs, "dimse_requests") == {
        ("client", "C-ECHO", "success"): 1,
        ("client", "C-STORE", "success"): 1,
    }
    assert nonzero(mine, "associations_rejected") == {("server", "requestor", "1", "7"): 1}
    assert nonzero(theirs, "associations_rejected") == {("client", "acceptor", "1", "7"): 1}
    out, into = nonzero(mine, "pdus"), nonzero(theirs, "pdus")
    assert out["out",] == into["in",]
    assert out["in",] == into["out",]


async def _serve(services: list[Service], association: Association) -> None:
    await serve_services(association, services)
