"""The UID tables against pydicom's registry."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydicom._uid_dict import UID_dictionary
from tools import make_uid_tables

from dcmhaul import _uid_tables, uids

PYDICOM_SYNTAXES = {
    uid: row[0] for uid, row in UID_dictionary.items() if row[1] == "Transfer Syntax"
}
PYDICOM_STORAGE = {
    uid: row[0]
    for uid, row in UID_dictionary.items()
    if row[1] == "SOP Class" and "Storage" in row[0] and uid not in make_uid_tables.NO_STORAGE
}


def test_transfer_syntaxes_are_those_of_the_registry() -> None:
    assert uids.TRANSFER_SYNTAXES == PYDICOM_SYNTAXES | make_uid_tables.EXTRA_TRANSFER_SYNTAXES
    assert len(PYDICOM_SYNTAXES) > 50


def test_storage_classes_are_those_of_the_registry_and_retired_ones_too() -> None:
    assert uids.STORAGE_SOP_CLASSES == PYDICOM_STORAGE | make_uid_tables.EXTRA_STORAGE
    assert len(PYDICOM_STORAGE) > 190
    assert uids.STORAGE_SOP_CLASSES["1.2.840.10008.5.1.4.1.1.6"].startswith("Ultrasound Image")


def test_every_storage_class_that_pynetdicom_offers_is_known() -> None:
    from pynetdicom.sop_class import _STORAGE_CLASSES

    assert set(_STORAGE_CLASSES.values()) <= set(uids.STORAGE_SOP_CLASSES)


def test_the_generated_module_is_up_to_date() -> None:
    assert make_uid_tables.TARGET.read_text(encoding="utf-8") == make_uid_tables.render()


@pytest.mark.parametrize(
    ("constant", "keyword"),
    [
        ("VERIFICATION", "Verification"),
        ("PATIENT_ROOT_FIND", "PatientRootQueryRetrieveInformationModelFind"),
        ("PATIENT_ROOT_MOVE", "PatientRootQueryRetrieveInformationModelMove"),
        ("PATIENT_ROOT_GET", "PatientRootQueryRetrieveInformationModelGet"),
        ("STUDY_ROOT_FIND", "StudyRootQueryRetrieveInformationModelFind"),
        ("STUDY_ROOT_MOVE", "StudyRootQueryRetrieveInformationModelMove"),
        ("STUDY_ROOT_GET", "StudyRootQueryRetrieveInformationModelGet"),
        ("PATIENT_STUDY_ONLY_FIND", "PatientStudyOnlyQueryRetrieveInformationModelFind"),
        ("PATIENT_STUDY_ONLY_MOVE", "PatientStudyOnlyQueryRetrieveInformationModelMove"),
        ("PATIENT_STUDY_ONLY_GET", "PatientStudyOnlyQueryRetrieveInformationModelGet"),
        ("MODALITY_WORKLIST_FIND", "ModalityWorklistInformationModelFind"),
        ("STORAGE_COMMITMENT_PUSH", "StorageCommitmentPushModel"),
        ("MEDIA_STORAGE_DIRECTORY", "MediaStorageDirectoryStorage"),
        ("IMPLICIT_VR_LITTLE_ENDIAN", "ImplicitVRLittleEndian"),
        ("EXPLICIT_VR_LITTLE_ENDIAN", "ExplicitVRLittleEndian"),
        ("DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN", "DeflatedExplicitVRLittleEndian"),
        ("EXPLICIT_VR_BIG_ENDIAN", "ExplicitVRBigEndian"),
    ],
)
def test_a_constant_is_the_uid_of_its_keyword(constant: str, keyword: str) -> None:
    by_keyword = {row[4]: uid for uid, row in UID_dictionary.items()}
    assert getattr(uids, constant) == by_keyword[keyword]


def test_the_tables_hold_each_uid_once() -> None:
    tables = (
        _uid_tables.TRANSFER_SYNTAXES,
        _uid_tables.STORAGE_SOP_CLASSES,
        _uid_tables.OTHER_UIDS,
    )
    assert len(set().union(*tables)) == sum(map(len, tables))


@pytest.mark.parametrize("text", ["1", "1.2.3", "2.25." + "9" * 59, "..1", "1..2", "0.01"])
def test_digits_and_dots_up_to_64_are_valid(text: str) -> None:
    assert uids.is_valid_uid(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "." * 64,
        "1" * 65,
        "1.2\n",
        "1.2\0",
        "../1",
        "a",
        "1.2 ",
        "/1",
        "1\\2",
        "\u0661.\u0662",
        "1.2\r\nX",
        "%00",
    ],
)
def test_anything_else_is_not(text: str) -> None:
    assert not uids.is_valid_uid(text)


def test_names() -> None:
    assert uids.name("1.2.840.10008.5.1.4.1.1.2") == "CT Image Storage"
    assert uids.name("1.2.840.10008.1.2") == "Implicit VR Little Endian"
    assert uids.name(uids.VERIFICATION) == "Verification SOP Class"
    assert uids.name(uids.APPLICATION_CONTEXT) == "DICOM Application Context Name"
    assert uids.name("1.2.3") == "1.2.3"


def test_our_own_identity() -> None:
    assert uids.is_valid_uid(uids.IMPLEMENTATION_CLASS_UID)
    assert uids.IMPLEMENTATION_CLASS_UID.startswith("2.25.")
    assert uids.IMPLEMENTATION_VERSION_NAME == "DCMHAUL_010"
    first, second = uids.new_uid(), uids.new_uid()
    assert first != second
    assert uids.is_valid_uid(first)
    assert len(first) <= uids.UID_LENGTH_MAX


def test_no_pydicom_is_imported() -> None:
    code = "import sys, dcmhaul.uids; sys.exit('pydicom' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
