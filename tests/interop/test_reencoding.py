"""Peers that take one uncompressed syntax alone: `send` re-encodes, and what they keep is the same."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dcmhaul.cli import main
from tests.datasets import FILES
from tests.interop import peers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom.dataset import Dataset

SENT = tuple(
    FILES / name
    for name in (
        "CT_small.dcm",
        "MR_small.dcm",
        "rtdose.dcm",
        "image_dfl.dcm",
        "waveform_ecg.dcm",
        "liver_expb_1frame.dcm",
        "SC_rgb_small_odd.dcm",
        "rtplan.dcm",
    )
)
CLASSES = (
    "CTImageStorage",
    "MRImageStorage",
    "RTDoseStorage",
    "RTPlanStorage",
    "SecondaryCaptureImageStorage",
    "TwelveLeadECGWaveformStorage",
    "SegmentationStorage",
)
PROFILE = """\
[[TransferSyntaxes]]
[One]
TransferSyntax1 = {syntax}
[[PresentationContexts]]
[Storage]
{contexts}
[[Profiles]]
[Default]
PresentationContexts = Storage
"""


@contextlib.contextmanager
def dcmtk(folder: Path, syntax: str, name: str) -> Iterator[peers.Server]:
    """storescp with a profile of one transfer syntax."""
    folder.mkdir()
    profile = folder.with_suffix(".cfg")
    contexts = [f"PresentationContext{n} = {uid}\\One" for n, uid in enumerate(CLASSES, 1)]
    profile.write_text(PROFILE.format(syntax=name, contexts="\n".join(contexts)))
    port = peers.free_port()
    argv = [peers.require("storescp"), "-xf", str(profile), "Default", "+B", "-od", str(folder)]
    with peers.serve(
        "storescp", [*argv, str(port)], aet="STORESCP", port=port, folder=folder
    ) as server:
        yield server


@contextlib.contextmanager
def implicit_alone(folder: Path, syntax: str, name: str) -> Iterator[peers.Server]:
    folder.mkdir()
    with peers.storescp(folder, extra=["+xi"]) as server:
        yield server


@contextlib.contextmanager
def orthanc(folder: Path, syntax: str, name: str) -> Iterator[peers.Server]:
    with peers.orthanc(folder, options={"AcceptedTransferSyntaxes": [syntax]}) as server:
        yield server


def kept(server: peers.Server, folder: Path) -> dict[str, Dataset]:
    """What the peer has, by SOP Instance UID."""
    if server.name == "Orthanc":
        for number, one in enumerate(peers.rest(server, "/instances")):
            path = folder / f"{number}.dcm"
            path.write_bytes(peers.rest(server, f"/instances/{one}/file", raw=True))
        paths = list(folder.glob("*.dcm"))
    else:
        paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(one.SOPInstanceUID): one for one in map(pydicom.dcmread, paths)}


def words(dataset: Dataset) -> bytes:
    """The pixels or samples; those of 16 bits in the order of little endian."""
    if "WaveformSequence" in dataset:
        one = dataset.WaveformSequence[0]["WaveformData"]
    elif "PixelData" in dataset:
        one = dataset["PixelData"]
    else:
        return b""
    data = bytearray(one.value)
    if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian and one.VR == "OW":
        data[::2], data[1::2] = data[1::2], data[::2]
    return bytes(data)


def others(dataset: Dataset) -> dict[int, object]:
    """Every other public value of the outermost dataset that is not bytes."""
    return {
        one.tag: one.value
        for one in dataset
        if not one.tag.is_private and one.tag.element and one.VR not in ("SQ", "OW", "OB", "UN")
    }


PEERS = {
    "storescp +xi": (implicit_alone, ImplicitVRLittleEndian, ""),
    "storescp, big endian": (dcmtk, ExplicitVRBigEndian, "BigEndianExplicit"),
    "storescp, explicit": (dcmtk, ExplicitVRLittleEndian, "LittleEndianExplicit"),
    "storescp, deflated": (dcmtk, DeflatedExplicitVRLittleEndian, "DeflatedLittleEndianExplicit"),
    "Orthanc, implicit": (orthanc, ImplicitVRLittleEndian, ""),
    "Orthanc, big endian": (orthanc, ExplicitVRBigEndian, ""),
}


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_of_one_syntax(
    peer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve, syntax, name = PEERS[peer]
    with serve(tmp_path / "peer", syntax, name) as server:
        assert main(["send", server.address, *map(str, SENT)]) == 0
        found = kept(server, tmp_path / "peer")
    _, err = capsys.readouterr()
    # Each other syntax once, however many files.
    own = {pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in SENT} - {syntax}
    assert len(err.splitlines()) == len(own)
    assert all(line.startswith("re-encoding from ") for line in err.splitlines())
    assert len(found) == len(SENT)
    for path in SENT:
        sent = pydicom.dcmread(path)
        one = found[str(sent.SOPInstanceUID)]
        assert one.file_meta.TransferSyntaxUID == syntax, path.name
        assert words(one) == words(sent), path.name
        assert others(one) == others(sent), path.name
