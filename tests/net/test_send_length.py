"""A requestor that caps its own P-DATA-TF below what the acceptor takes."""

from __future__ import annotations

import pytest
import trio

from dcmhaul import uids
from dcmhaul.net import open_association, serve_associations
from dcmhaul.protocol.negotiation import (
    AcceptorPolicy,
    AssociationRequest,
    SupportedContext,
)
from dcmhaul.wire.items import PresentationContextRq


@pytest.mark.parametrize(("peer", "cap", "agreed"), [(65536, 16384, 16384), (16384, 65536, 16384)])
async def test_the_smaller_length_holds(peer: int, cap: int, agreed: int) -> None:
    policy = AcceptorPolicy(
        ae_title=None, supported={uids.VERIFICATION: SupportedContext()}, pdu_length_max=peer
    )
    request = AssociationRequest(
        called_ae_title="A",
        calling_ae_title="B",
        contexts=(
            PresentationContextRq(
                context_id=1,
                abstract_syntax=uids.VERIFICATION,
                transfer_syntaxes=(uids.IMPLICIT_VR_LITTLE_ENDIAN,),
            ),
        ),
        pdu_length_send_max=cap,
    )

    async def until_released(association: object) -> None:
        await association.receive(seconds=5)  # type: ignore[attr-defined]

    async with trio.open_nursery() as nursery:
        [(host, port)] = await nursery.start(
            lambda task_status: serve_associations(
                until_released, policy, host="127.0.0.1", port=0, task_status=task_status
            )
        )
        async with open_association(host, port, request) as association:
            assert association.agreement.pdu_length_send_max == agreed
        nursery.cancel_scope.cancel()
