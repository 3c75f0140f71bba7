"""Running peers as fixtures; a test that needs other options calls tests.interop.peers itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.interop import peers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[peers.Server]:
    """DCMTK's storescp, as installed (Nagle on), which writes what it receives into `.folder`."""
    folder = tmp_path / "storescp"
    folder.mkdir()
    with peers.storescp(folder) as server:
        yield server


@pytest.fixture
def dcmqrscp(tmp_path: Path) -> Iterator[peers.Server]:
    """DCMTK's archive, empty."""
    with peers.dcmqrscp(tmp_path / "dcmqrscp") as server:
        yield server


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[peers.Server]:
    """Orthanc, empty, with its REST interface on `.http_port`."""
    with peers.orthanc(tmp_path / "orthanc") as server:
        yield server


@pytest.fixture
def pynetdicom_scp(tmp_path: Path) -> Iterator[peers.Server]:
    """A pynetdicom SCP that keeps its files in `.folder` and answers queries from them."""
    with peers.pynetdicom_scp(tmp_path / "pynetdicom") as server:
        yield server
