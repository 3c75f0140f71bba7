"""A peer that accepts our association and then answers as it was told, octet by octet."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from tests.hostile import octets
from tests.hostile.octets import big, counted, item, pdu
from tests.reference import codec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class ScriptedScp:
    """`answer` gets each whole message of ours, `early` each command before its dataset has come.

    Both return the octets to send, None to read nothing more, and get the running number of the message,
    from 1. length: the maximum length that it announces. drops_windows: closes the connection at a
    request for an asynchronous operations window.
    """

    def __init__(
        self,
        answer: Callable[[int, dict[str, Any]], bytes | None] = lambda _n, _command: b"",
        *,
        early: Callable[[int, dict[str, Any]], bytes] = lambda _n, _command: b"",
        window: int = 1,
        length: int = 16384,
        drops_windows: bool = False,
    ) -> None:
        self.port = 0
        self.answer = answer
        self.early = early
        self.window = window
        self.length = length
        self.drops_windows = drops_windows
        self.requests: list[dict[str, Any]] = []
        """Of each A-ASSOCIATE-RQ, its user information."""
        self.commands: list[dict[str, Any]] = []
        self.datasets: list[bytearray] = []
        """Of each command, what came after it."""
        self.fragments: list[int] = []
        """Lengths of the fragments of datasets."""
        self.longest_pdu = 0
        self.mixed_pdus = 0
        """P-DATA-TFs that hold a command and a dataset."""
        self.ends: list[tuple[int, ...]] = []
        """How each connection ended: the type of our last PDU, and of an A-ABORT source and reason."""

    async def _pdu(self, stream: trio.SocketStream) -> tuple[int, bytes]:
        header = await self._exactly(stream, 6)
        return header[0], await self._exactly(stream, int.from_bytes(header[2:], "big"))

    async def _exactly(self, stream: trio.SocketStream, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = await stream.receive_some(count - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    async def serve(self, stream: trio.SocketStream) -> None:
        end: tuple[int, ...] = (0,)
        async with stream:
            try:
                end = await self._converse(stream)
            except (EOFError, trio.BrokenResourceError):
                pass
        self.ends.append(end)

    async def _converse(self, stream: trio.SocketStream) -> tuple[int, ...]:
        pdu_type, body = await self._pdu(stream)
        rq = codec.decode_pdu(pdu_type, body)
        self.requests.append(rq["user_information"])
        if self.drops_windows and rq["user_information"]["async_window"] is not None:
            return (1,)
        await stream.send_all(self.accept(rq))
        command = bytearray()
        fields: dict[str, Any] = {}
        while True:
            pdu_type, body = await self._pdu(stream)
            if pdu_type == 5:
                await stream.send_all(octets.release_rp)
                return (5,)
            if pdu_type != 4:
                return (pdu_type, *body[2:4])
            self.longest_pdu = max(self.longest_pdu, len(body))
            pdvs = codec.decode_pdu(pdu_type, body)["pdvs"]
            self.mixed_pdus += len({value["is_command"] for value in pdvs}) > 1
            for value in pdvs:
                answer: bytes | None = b""
                if value["is_command"]:
                    command += value["fragment"]
                    if value["is_last"]:
                        fields = codec.decode_command(bytes(command))
                        fields["context_id"] = value["context_id"]
                        command.clear()
                        self.commands.append(fields)
                        self.datasets.append(bytearray())
                        answer = self.early(len(self.commands), fields)
                        if fields["CommandDataSetType"] == 0x0101:
                            answer = self.answer(len(self.commands), fields)
                else:
                    self.datasets[-1] += value["fragment"]
                    self.fragments.append(len(value["fragment"]))
                    if value["is_last"]:
                        answer = self.answer(len(self.commands), fields)
                if answer is None:
                    await trio.sleep_forever()
                if answer:
                    await stream.send_all(answer)

    def accept(self, rq: dict[str, Any]) -> bytes:
        """The A-ASSOCIATE-AC to a request: every context with its first syntax, every role."""
        contexts = b"".join(
            item(
                0x21,
                bytes([proposed["context_id"], 0, 0, 0])
                + item(0x40, proposed["transfer_syntaxes"][0].encode()),
            )
            for proposed in rq["presentation_contexts"]
        )
        sub_items = [
            item(0x54, counted(role["sop_class_uid"].encode()) + bytes([role["scu"], role["scp"]]))
            for role in rq["user_information"]["roles"]
        ]
        if rq["user_information"]["async_window"] is not None:
            sub_items.append(item(0x53, big(self.window, 2) + big(self.window, 2)))
        fields = big(1, 2) + bytes(2) + octets.title(b"PEER") + octets.title(b"OURS") + bytes(32)
        user = octets.user_information(*sub_items, length=self.length)
        return pdu(2, fields + octets.APPLICATION_CONTEXT + contexts + user)


def response(request: dict[str, Any], **changes: Any) -> bytes:
    """The response to a request, as a P-DATA-TF; None takes an element away."""
    fields = {
        "AffectedSOPClassUID": request.get("AffectedSOPClassUID"),
        "CommandField": request["CommandField"] | 0x8000,
        "MessageIDBeingRespondedTo": request["MessageID"],
        "CommandDataSetType": 0x0101,
        "Status": 0,
        **changes,
    }
    command = codec.encode_command(fields)
    return octets.command_pdu(request["context_id"], command)


@asynccontextmanager
async def running(scp: ScriptedScp) -> AsyncIterator[ScriptedScp]:
    """Listens during the block; at its end every connection has ended."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, scp.serve, 0, host="127.0.0.1"))
        scp.port = listeners[0].socket.getsockname()[1]
        yield scp
        nursery.cancel_scope.cancel()
