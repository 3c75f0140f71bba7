"""Print management and availability notifications: the archive for pynetdicom, our verbs at pynetdicom."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pynetdicom import AE, evt

import dcmhaul
from dcmhaul import uids
from dcmhaul.cli import main
from tests.archive.test_printing import NOTICE, film, notice
from tests.archive.test_unified import item
from tests.interop import peers
from tests.net.test_cli import process

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    import pytest
    from pydicom import Dataset

GRAY, LUT = uids.GRAYSCALE_PRINT_META, uids.PRESENTATION_LUT
SESSION, FILM, BOX = uids.BASIC_FILM_SESSION, uids.BASIC_FILM_BOX, uids.GRAYSCALE_IMAGE_BOX
S, F = "1.2.1", "1.2.2"


def test_the_archive_for_pynetdicom(tmp_path: Path) -> None:
    ae = AE("SCU")
    for uid in (GRAY, LUT, NOTICE):
        ae.add_requested_context(uid)
    words = ("--dir", tmp_path, "--port", "0", "--aet", "ARCH", "--bind", "127.0.0.1")
    with process("archive", *words) as archive:
        association = ae.associate("127.0.0.1", archive.port, ae_title="ARCH")
        assert association.is_established

        def create(attributes: Dataset, sop_class: str, uid: str, context: str) -> Any:
            return association.send_n_create(attributes, sop_class, uid, meta_uid=context)

        def delete(sop_class: str, uid: str, context: str) -> int:
            return int(association.send_n_delete(sop_class, uid, meta_uid=context).Status)

        assert create(item(NumberOfCopies="1"), SESSION, S, GRAY)[0].Status == 0
        status, made = create(film("STANDARD\\1,1"), FILM, F, GRAY)
        assert status.Status == 0
        [box] = made.ReferencedImageBoxSequence
        assert box.ReferencedSOPClassUID == BOX
        image = item(ImageBoxPosition=1, BasicGrayscaleImageSequence=[item(Rows=1)])
        status, _ = association.send_n_set(image, BOX, box.ReferencedSOPInstanceUID, meta_uid=GRAY)
        assert status.Status == 0
        status, _ = association.send_n_action(None, 1, FILM, F, meta_uid=GRAY)
        assert status.Status == 0xC602
        assert delete(FILM, F, GRAY) == 0
        assert delete(SESSION, S, GRAY) == 0
        assert delete(SESSION, S, GRAY) == 0x0112
        shape = item(PresentationLUTShape="IDENTITY")
        assert create(shape, LUT, "1.3", LUT)[0].Status == 0
        assert delete(LUT, "1.3", LUT) == 0
        status, told = association.send_n_get(
            [], uids.PRINTER, "1.2.840.10008.5.1.1.17", meta_uid=GRAY
        )
        assert told is not None
        assert (status.Status, told.PrinterStatus) == (0, "WARNING")
        assert create(notice(), NOTICE, "1.5", NOTICE)[0].Status == 0
        assert create(notice(), NOTICE, "1.5", NOTICE)[0].Status == 0x0111
        association.release()


async def test_notices_survive_a_restart(tmp_path: Path) -> None:
    async with dcmhaul.open_archive(tmp_path) as archive:
        async with (
            dcmhaul.serve(archive.services()) as peer,
            dcmhaul.open_association(peer, [NOTICE]) as association,
        ):
            assert (await dcmhaul.n_create(association, NOTICE, "1.5", notice())).status == 0
    async with dcmhaul.open_archive(tmp_path) as archive:
        [(_, kept)] = await archive.notices.read()
        assert kept.attributes.StudyInstanceUID == "1.1"


def test_at_pynetdicom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`n-create` notifies, makes and `n-delete` deletes what a foreign SCP holds."""
    held: dict[str, Dataset] = {}

    def create(event: Any) -> tuple[int, Dataset | None]:
        held[event.request.AffectedSOPInstanceUID] = event.attribute_list
        return 0x0000, event.attribute_list

    def delete(event: Any) -> int:
        return 0x0000 if held.pop(event.request.RequestedSOPInstanceUID, None) else 0x0112

    ae = AE("FOREIGN")
    for uid in (GRAY, LUT, NOTICE):
        ae.add_supported_context(uid)
    handlers = (evt.EVT_N_CREATE, create), (evt.EVT_N_DELETE, delete)
    with peers.pynetdicom_serving(ae, *handlers) as address:
        told = tmp_path / "notice.json"
        told.write_text(json.dumps(notice().to_json_dict()))
        words = ["--class", "InstanceAvailabilityNotification", "--instance", "1.5"]
        assert main(["n-create", address, *words, "--dataset", str(told)]) == 0
        [series] = held["1.5"].ReferencedSeriesSequence
        assert series.ReferencedSOPSequence[0].InstanceAvailability == "ONLINE"
        words = ["--class", SESSION, "--context", GRAY, "--instance", S]
        assert main(["n-create", address, *words, "-k", "NumberOfCopies=2"]) == 0
        assert main(["n-delete", address, *words]) == 0
        assert main(["n-delete", address, *words]) == 6
        words = ["--class", LUT, "--instance", "1.3"]
        assert main(["n-create", address, *words, "-k", "PresentationLUTShape=IDENTITY"]) == 0
        assert main(["n-delete", address, *words]) == 0
    assert set(held) == {"1.5"}
    assert "0x0112" in capsys.readouterr().err
