"""UIDs by name and names by UID (PS3.6 Annex A); imports no pydicom."""

from __future__ import annotations

import re
import uuid

from dcmhaul._uid_tables import OTHER_UIDS, STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from dcmhaul._version import __version__

__all__ = [
    "APPLICATION_CONTEXT",
    "VERIFICATION",
    "PATIENT_ROOT_FIND",
    "PATIENT_ROOT_MOVE",
    "PATIENT_ROOT_GET",
    "STUDY_ROOT_FIND",
    "STUDY_ROOT_MOVE",
    "STUDY_ROOT_GET",
    "PATIENT_STUDY_ONLY_FIND",
    "PATIENT_STUDY_ONLY_MOVE",
    "PATIENT_STUDY_ONLY_GET",
    "MODALITY_PERFORMED_PROCEDURE_STEP",
    "MODALITY_PERFORMED_PROCEDURE_STEP_RETRIEVE",
    "MODALITY_WORKLIST_FIND",
    "STORAGE_COMMITMENT_PUSH",
    "UNIFIED_STEP_PUSH",
    "UNIFIED_STEP_WATCH",
    "UNIFIED_STEP_PULL",
    "UNIFIED_STEP_EVENT",
    "UNIFIED_STEP_QUERY",
    "UNIFIED_STEP_SUBSCRIPTION",
    "MEDIA_STORAGE_DIRECTORY",
    "IMPLICIT_VR_LITTLE_ENDIAN",
    "EXPLICIT_VR_LITTLE_ENDIAN",
    "DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN",
    "EXPLICIT_VR_BIG_ENDIAN",
    "GE_IMPLICIT_VR_BIG_ENDIAN",
    "IMPLEMENTATION_CLASS_UID",
    "IMPLEMENTATION_VERSION_NAME",
    "OTHER_UIDS",
    "STORAGE_SOP_CLASSES",
    "TRANSFER_SYNTAXES",
    "UID_LENGTH_MAX",
    "is_valid_uid",
    "name",
    "new_uid",
]

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"
PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
PATIENT_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.1.2"
PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.3"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
PATIENT_STUDY_ONLY_FIND = "1.2.840.10008.5.1.4.1.2.3.1"
PATIENT_STUDY_ONLY_MOVE = "1.2.840.10008.5.1.4.1.2.3.2"
PATIENT_STUDY_ONLY_GET = "1.2.840.10008.5.1.4.1.2.3.3"
MODALITY_WORKLIST_FIND = "1.2.840.10008.5.1.4.31"
STORAGE_COMMITMENT_PUSH = "1.2.840.10008.1.20.1"
MODALITY_PERFORMED_PROCEDURE_STEP = "1.2.840.10008.3.1.2.3.3"
MODALITY_PERFORMED_PROCEDURE_STEP_RETRIEVE = "1.2.840.10008.3.1.2.3.4"
UNIFIED_STEP_PUSH = "1.2.840.10008.5.1.4.34.6.1"
UNIFIED_STEP_WATCH = "1.2.840.10008.5.1.4.34.6.2"
UNIFIED_STEP_PULL = "1.2.840.10008.5.1.4.34.6.3"
UNIFIED_STEP_EVENT = "1.2.840.10008.5.1.4.34.6.4"
UNIFIED_STEP_QUERY = "1.2.840.10008.5.1.4.34.6.5"
# The well-known instance to which whoever wants to hear of all steps subscribes.
UNIFIED_STEP_SUBSCRIPTION = "1.2.840.10008.5.1.4.34.5"
MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
# The elements are little endian, only the pixels are not (GE, private).
GE_IMPLICIT_VR_BIG_ENDIAN = "1.2.840.113619.5.2"

IMPLEMENTATION_CLASS_UID = "2.25.285881015616888237679828000282987394879"
IMPLEMENTATION_VERSION_NAME = f"DCMHAUL_{__version__.replace('.', '')}"[:16]

UID_LENGTH_MAX = 64
_VALID = re.compile(r"(?=\.*[0-9])[0-9.]{1,64}", re.ASCII)


def is_valid_uid(text: str) -> bool:
    """True for 1 to 64 characters of digits and dots, a digit among them: what may name a file.

    PS3.5 §9.1 is stricter (no leading zeros, no empty component); files in the field are not.
    """
    return _VALID.fullmatch(text) is not None


def name(uid: str) -> str:
    """The standard's name of a UID, or the UID itself where it has none."""
    return STORAGE_SOP_CLASSES.get(uid) or TRANSFER_SYNTAXES.get(uid) or OTHER_UIDS.get(uid) or uid


def new_uid() -> str:
    """A fresh UID under 2.25, from a random UUID (PS3.5 §B.2)."""
    return f"2.25.{uuid.uuid4().int}"
