"""A slow, plain codec of PDUs and command sets, from PS3.8 §9.3, Annex D and PS3.7 Annex D, E.

An oracle: it imports nothing of the package, reads octet by octet, and knows no optimisation.
A PDU is a dict of its fields, with "pdu" as its name; nested items are dicts, lists are lists.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

ASSOCIATE_LENGTH_MAX = 1_048_576
ITEMS_MAX = 4096
NAMES = {
    1: "A-ASSOCIATE-RQ",
    2: "A-ASSOCIATE-AC",
    3: "A-ASSOCIATE-RJ",
    4: "P-DATA-TF",
    5: "A-RELEASE-RQ",
    6: "A-RELEASE-RP",
    7: "A-ABORT",
}
TYPES = {name: number for number, name in NAMES.items()}


class Malformed(Exception):
    """What cannot be decoded, with the source and reason of the A-ABORT that it deserves."""

    def __init__(self, text: str, source: int = 2, reason: int = 6) -> None:
        super().__init__(text)
        self.source = source
        self.reason = reason


class Octets:
    """Reads from the front; asking for more than there is raises Malformed."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    @property
    def rest(self) -> bytes:
        return self.data[self.place :]

    def take(self, count: int) -> bytes:
        remaining = len(self.data) - self.place
        if count > remaining:
            raise Malformed(f"{count} octets wanted, {remaining} there")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, count: int, order: str = "big") -> int:
        value = 0
        octets = self.take(count)
        for octet in octets if order == "big" else octets[::-1]:
            value = value * 256 + octet
        return value

    def counted(self) -> bytes:
        return self.take(self.number(2))

    def skip(self, count: int) -> None:
        self.take(count)

    def end(self) -> None:
        if self:
            raise Malformed(f"{len(self.rest)} octets too many")

    def __bool__(self) -> bool:
        return self.place < len(self.data)


def big(value: int, count: int) -> bytes:
    return bytes(value >> 8 * (count - 1 - place) & 0xFF for place in range(count))


def little(value: int, count: int) -> bytes:
    return big(value, count)[::-1]


def unpadded(octets: bytes) -> str:
    text = "".join(map(chr, octets))
    while text and text[-1] in "\0 ":
        text = text[:-1]
    return text


def octets_of(text: str) -> bytes:
    return bytes(map(ord, text))


# -- streams


def split_pdus(stream: bytes) -> list[tuple[int, bytes]]:
    """(PDU type, variable field) of a stream of whole PDUs."""
    octets = Octets(stream)
    pdus = []
    while octets:
        pdu_type = octets.number(1)
        octets.skip(1)
        pdus.append((pdu_type, octets.take(octets.number(4))))
    return pdus


# -- decoding of PDUs


def decode_pdu(pdu_type: int, body: bytes) -> Fields:
    if pdu_type not in NAMES:
        raise Malformed(f"PDU type {pdu_type}", reason=1)
    name = NAMES[pdu_type]
    if name in ("A-ASSOCIATE-RQ", "A-ASSOCIATE-AC"):
        return {"pdu": name, **_associate(body, 0x20 if pdu_type == 1 else 0x21)}
    if name == "P-DATA-TF":
        return {"pdu": name, "pdvs": _pdvs(body)}
    octets = Octets(body)
    octets.skip(1)
    first, second, third = octets.number(1), octets.number(1), octets.number(1)
    octets.end()
    if name == "A-ASSOCIATE-RJ":
        return {"pdu": name, "result": first, "source": second, "reason": third}
    if name == "A-ABORT":
        return {"pdu": name, "source": second, "reason": third}
    return {"pdu": name}


def _pdvs(body: bytes) -> list[Fields]:
    octets = Octets(body)
    pdvs: list[Fields] = []
    while octets or not pdvs:
        value = Octets(octets.take(octets.number(4)))
        context_id, control = value.number(1), value.number(1)
        pdvs.append(
            {
                "context_id": context_id,
                "is_command": bool(control & 0b01),
                "is_last": bool(control & 0b10),
                "fragment": value.rest,
            }
        )
    return pdvs


def _items(octets: Octets) -> list[tuple[int, bytes]]:
    items = []
    while octets:
        item_type = octets.number(1)
        octets.skip(1)
        items.append((item_type, octets.counted()))
    if len(items) > ITEMS_MAX:
        raise Malformed(f"{len(items)} items")
    return items


def _associate(body: bytes, context_type: int) -> Fields:
    if len(body) > ASSOCIATE_LENGTH_MAX:
        raise Malformed(f"{len(body)} octets")
    octets = Octets(body)
    fields: Fields = {"protocol_version": octets.number(2)}
    octets.skip(2)
    fields["called_ae_title"] = "".join(map(chr, octets.take(16))).strip(" ")
    fields["calling_ae_title"] = "".join(map(chr, octets.take(16))).strip(" ")
    octets.skip(32)
    fields["application_context"] = ""
    fields["presentation_contexts"] = []
    fields["user_information"] = _user_information(b"")
    fields["unknown_items"] = []
    once = set()
    for item_type, value in _items(octets):
        if item_type in (0x10, 0x50):
            if item_type in once:
                raise Malformed(f"item {item_type:02x} repeated")
            once.add(item_type)
        if item_type == 0x10:
            fields["application_context"] = unpadded(value)
        elif item_type == context_type:
            decode = _context_rq if context_type == 0x20 else _context_ac
            fields["presentation_contexts"].append(decode(value))
        elif item_type == 0x50:
            fields["user_information"] = _user_information(value)
        else:
            fields["unknown_items"].append({"item_type": item_type, "data": value})
    return fields


def _context_rq(value: bytes) -> Fields:
    octets = Octets(value)
    context_id = octets.number(1)
    octets.skip(3)
    items = _items(octets)
    abstract = [unpadded(data) for item_type, data in items if item_type == 0x30]
    return {
        "context_id": context_id,
        "abstract_syntax": abstract[0] if abstract else "",
        "further_abstract_syntaxes": abstract[1:],
        "transfer_syntaxes": [unpadded(data) for item_type, data in items if item_type == 0x40],
        "unknown_items": _unknown(items, (0x30, 0x40)),
    }


def _context_ac(value: bytes) -> Fields:
    octets = Octets(value)
    context_id = octets.number(1)
    octets.skip(1)
    result = octets.number(1)
    octets.skip(1)
    items = _items(octets) if result == 0 else []
    transfer = [unpadded(data) for item_type, data in items if item_type == 0x40]
    return {
        "context_id": context_id,
        "result": result,
        "transfer_syntax": transfer[0] if len(transfer) == 1 else None,
        "unknown_items": _unknown(items, (0x40,)),
    }


def _unknown(items: list[tuple[int, bytes]], known: tuple[int, ...]) -> list[Fields]:
    return [{"item_type": kind, "data": data} for kind, data in items if kind not in known]


def _user_information(value: bytes) -> Fields:
    items = _items(Octets(value))
    for kind in (0x51, 0x52, 0x53, 0x55, 0x58, 0x59):
        if len([1 for item_type, _ in items if item_type == kind]) > 1:
            raise Malformed(f"sub-item {kind:02x} repeated")

    def all_of(kind: int, decode: Any) -> list[Any]:
        return [decode(Octets(data)) for item_type, data in items if item_type == kind]

    def one_of(kind: int, decode: Any) -> Any:
        found = all_of(kind, decode)
        return found[0] if found else None

    return {
        "max_length_received": one_of(0x51, _maximum_length),
        "implementation_class_uid": one_of(0x52, lambda octets: unpadded(octets.rest)),
        "implementation_version_name": one_of(0x55, lambda octets: unpadded(octets.rest)),
        "async_window": one_of(0x53, _window),
        "roles": all_of(0x54, _role),
        "extended": all_of(0x56, _extended),
        "common_extended": all_of(0x57, _common_extended),
        "user_identity": one_of(0x58, _identity),
        "user_identity_response": one_of(0x59, _identity_response),
        "unknown": _unknown(items, tuple(range(0x51, 0x5A))),
    }


def _maximum_length(octets: Octets) -> int:
    length = octets.number(4)
    octets.end()
    return length


def _window(octets: Octets) -> Fields:
    fields = {"invoked": octets.number(2), "performed": octets.number(2)}
    octets.end()
    return fields


def _role(octets: Octets) -> Fields:
    fields = {
        "sop_class_uid": unpadded(octets.counted()),
        "scu": octets.number(1) > 0,
        "scp": octets.number(1) > 0,
    }
    octets.end()
    return fields


def _extended(octets: Octets) -> Fields:
    return {"sop_class_uid": unpadded(octets.counted()), "information": octets.rest}


def _common_extended(octets: Octets) -> Fields:
    fields: Fields = {
        "sop_class_uid": unpadded(octets.counted()),
        "service_class_uid": unpadded(octets.counted()),
    }
    listed = Octets(octets.counted())
    related = []
    while listed:
        related.append(unpadded(listed.counted()))
    return {**fields, "related": related}


def _identity(octets: Octets) -> Fields:
    fields = {
        "identity_type": octets.number(1),
        "response_requested": octets.number(1) > 0,
        "primary": octets.counted(),
        "secondary": octets.counted(),
    }
    octets.end()
    return fields


def _identity_response(octets: Octets) -> bytes:
    response = octets.counted()
    octets.end()
    return response


# -- encoding of PDUs


def encode_pdu(fields: Fields) -> bytes:
    name = fields["pdu"]
    if name == "P-DATA-TF":
        body = b"".join(map(_encode_pdv, fields["pdvs"]))
    elif name == "A-ASSOCIATE-RJ":
        body = bytes([0, fields["result"], fields["source"], fields["reason"]])
    elif name == "A-ABORT":
        body = bytes([0, 0, fields["source"], fields["reason"]])
    elif name in ("A-RELEASE-RQ", "A-RELEASE-RP"):
        body = bytes(4)
    else:
        body = _encode_associate(fields)
    return bytes([TYPES[name], 0]) + big(len(body), 4) + body


def _encode_pdv(fields: Fields) -> bytes:
    control = 1 * fields["is_command"] + 2 * fields["is_last"]
    value: bytes = bytes([fields["context_id"], control]) + fields["fragment"]
    return big(len(value), 4) + value


def item(kind: int, value: bytes) -> bytes:
    return bytes([kind, 0]) + big(len(value), 2) + value


def counted(value: bytes) -> bytes:
    return big(len(value), 2) + value


def _encode_associate(fields: Fields) -> bytes:
    body = big(fields["protocol_version"], 2) + bytes(2)
    for title in (fields["called_ae_title"], fields["calling_ae_title"]):
        body += (octets_of(title) + b" " * 16)[:16]
    body += bytes(32)
    body += item(0x10, octets_of(fields["application_context"]))
    for context in fields["presentation_contexts"]:
        if fields["pdu"] == "A-ASSOCIATE-RQ":
            body += _encode_context_rq(context)
        else:
            body += _encode_context_ac(context)
    body += item(0x50, _encode_user_information(fields["user_information"]))
    return body + _encode_unknown(fields["unknown_items"])


def _encode_unknown(items: list[Fields]) -> bytes:
    return b"".join(item(unknown["item_type"], unknown["data"]) for unknown in items)


def _encode_context_rq(context: Fields) -> bytes:
    value = bytes([context["context_id"], 0, 0, 0])
    for uid in [context["abstract_syntax"], *context["further_abstract_syntaxes"]]:
        if uid:
            value += item(0x30, octets_of(uid))
    for uid in context["transfer_syntaxes"]:
        value += item(0x40, octets_of(uid))
    return item(0x20, value + _encode_unknown(context["unknown_items"]))


def _encode_context_ac(context: Fields) -> bytes:
    value = bytes([context["context_id"], 0, context["result"], 0])
    syntax = context["transfer_syntax"]
    value += item(0x40, octets_of("1.2.840.10008.1.2" if syntax is None else syntax))
    return item(0x21, value + _encode_unknown(context["unknown_items"]))


def _encode_user_information(info: Fields) -> bytes:
    value = b""
    if info["max_length_received"] is not None:
        value += item(0x51, big(info["max_length_received"], 4))
    if info["implementation_class_uid"] is not None:
        value += item(0x52, octets_of(info["implementation_class_uid"]))
    if info["async_window"] is not None:
        window = info["async_window"]
        value += item(0x53, big(window["invoked"], 2) + big(window["performed"], 2))
    for role in info["roles"]:
        uid = counted(octets_of(role["sop_class_uid"]))
        value += item(0x54, uid + bytes([1 * role["scu"], 1 * role["scp"]]))
    if info["implementation_version_name"] is not None:
        value += item(0x55, octets_of(info["implementation_version_name"]))
    for extended in info["extended"]:
        uid = counted(octets_of(extended["sop_class_uid"]))
        value += item(0x56, uid + extended["information"])
    for common in info["common_extended"]:
        related = b"".join(counted(octets_of(uid)) for uid in common["related"])
        value += item(
            0x57,
            counted(octets_of(common["sop_class_uid"]))
            + counted(octets_of(common["service_class_uid"]))
            + counted(related),
        )
    if info["user_identity"] is not None:
        identity = info["user_identity"]
        value += item(
            0x58,
            bytes([identity["identity_type"], 1 * identity["response_requested"]])
            + counted(identity["primary"])
            + counted(identity["secondary"]),
        )
    if info["user_identity_response"] is not None:
        value += item(0x59, counted(info["user_identity_response"]))
    return value + _encode_unknown(info["unknown"])


# -- command sets: implicit VR little endian, group 0000

UID, NUMBER, LONG, TEXT, TAGS = "UI", "US", "UL", "text", "AT"
COMMAND_ELEMENTS = {
    0x0000: ("CommandGroupLength", LONG),
    0x0002: ("AffectedSOPClassUID", UID),
    0x0003: ("RequestedSOPClassUID", UID),
    0x0100: ("CommandField", NUMBER),
    0x0110: ("MessageID", NUMBER),
    0x0120: ("MessageIDBeingRespondedTo", NUMBER),
    0x0600: ("MoveDestination", TEXT),
    0x0700: ("Priority", NUMBER),
    0x0800: ("CommandDataSetType", NUMBER),
    0x0900: ("Status", NUMBER),
    0x0901: ("OffendingElement", TAGS),
    0x0902: ("ErrorComment", TEXT),
    0x0903: ("ErrorID", NUMBER),
    0x1000: ("AffectedSOPInstanceUID", UID),
    0x1001: ("RequestedSOPInstanceUID", UID),
    0x1002: ("EventTypeID", NUMBER),
    0x1005: ("AttributeIdentifierList", TAGS),
    0x1008: ("ActionTypeID", NUMBER),
    0x1020: ("NumberOfRemainingSuboperations", NUMBER),
    0x1021: ("NumberOfCompletedSuboperations", NUMBER),
    0x1022: ("NumberOfFailedSuboperations", NUMBER),
    0x1023: ("NumberOfWarningSuboperations", NUMBER),
    0x1030: ("MoveOriginatorApplicationEntityTitle", TEXT),
    0x1031: ("MoveOriginatorMessageID", NUMBER),
}


def decode_command(data: bytes) -> Fields:
    try:
        return _command_elements(Octets(data))
    except Malformed as exc:
        raise Malformed(str(exc), source=0, reason=0) from exc


def _command_elements(octets: Octets) -> Fields:
    values: Fields = {}
    numbers = set()
    while octets:
        group = octets.number(2, "little")
        number = octets.number(2, "little")
        length = octets.number(4, "little")
        if group != 0 or number in numbers or length % 2:
            raise Malformed(f"({group:04x},{number:04x}) of {length}")
        numbers.add(number)
        value = octets.take(length)
        if number not in COMMAND_ELEMENTS:
            continue
        keyword, kind = COMMAND_ELEMENTS[number]
        if kind == UID:
            values[keyword] = unpadded(value)
        elif kind == TEXT:
            values[keyword] = "".join(map(chr, value)).strip("\0 ")
        elif kind == TAGS:
            tags = Octets(value)
            values[keyword] = []
            while tags:
                tag = tags.number(2, "little") * 65536 + tags.number(2, "little")
                values[keyword].append(tag)
        elif value:
            if len(value) != (2 if kind == NUMBER else 4):
                raise Malformed(f"{keyword} of {len(value)}")
            values[keyword] = Octets(value).number(len(value), "little")
    return values


def encode_command(values: Fields) -> bytes:
    body = b""
    for number in sorted(COMMAND_ELEMENTS):
        keyword, kind = COMMAND_ELEMENTS[number]
        if number == 0 or values.get(keyword) is None:
            continue
        value = values[keyword]
        if kind == NUMBER:
            octets = little(value, 2)
        elif kind == TAGS:
            octets = b"".join(little(tag >> 16, 2) + little(tag & 0xFFFF, 2) for tag in value)
        else:
            octets = octets_of(value)
            if len(octets) % 2:
                octets += b"\0" if kind == UID else b" "
        body += command_element(number, octets)
    return command_element(0, little(len(body), 4)) + body


def command_element(number: int, value: bytes, group: int = 0) -> bytes:
    return little(group, 2) + little(number, 2) + little(len(value), 4) + value
