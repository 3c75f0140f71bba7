"""Which attributes the index holds, at which level of the Query/Retrieve model (PS3.4 Annex C.6).

One table; the index's columns, the tags captured on receipt and the keys of C-FIND follow from it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = [
    "ATTRIBUTES",
    "AVAILABLE_TRANSFER_SYNTAX_UID",
    "BY_TAG",
    "CAPTURED_TAGS",
    "INSTANCE_AVAILABILITY",
    "MODALITIES_IN_STUDY",
    "NUMBER_OF_PATIENT_RELATED_INSTANCES",
    "NUMBER_OF_PATIENT_RELATED_SERIES",
    "NUMBER_OF_PATIENT_RELATED_STUDIES",
    "NUMBER_OF_SERIES_RELATED_INSTANCES",
    "NUMBER_OF_STUDY_RELATED_INSTANCES",
    "NUMBER_OF_STUDY_RELATED_SERIES",
    "PATIENT_ID",
    "PATIENT_NAME",
    "QUERY_RETRIEVE_LEVEL",
    "RETRIEVE_AE_TITLE",
    "SERIES_INSTANCE_UID",
    "SOP_CLASSES_IN_STUDY",
    "SOP_CLASS_UID",
    "SOP_INSTANCE_UID",
    "SPECIFIC_CHARACTER_SET",
    "STUDY_INSTANCE_UID",
    "UNIQUE_KEYS",
    "Attribute",
    "Level",
    "at_level",
]

SPECIFIC_CHARACTER_SET = 0x00080005
QUERY_RETRIEVE_LEVEL = 0x00080052
RETRIEVE_AE_TITLE = 0x00080054
INSTANCE_AVAILABILITY = 0x00080056


class Level(enum.IntEnum):
    """The levels from the top; a key belongs to one of them."""

    PATIENT = 0
    STUDY = 1
    SERIES = 2
    IMAGE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One attribute. `column` names it in the index; None where it is counted when asked for.

    multiple: the value may hold several, separated by backslashes.
    """

    tag: int
    vr: str
    level: Level
    column: str | None
    multiple: bool = False


def _attributes(level: Level, *rows: tuple[int, str, str]) -> tuple[Attribute, ...]:
    """`rows`: tag, VR (a trailing `*`: multi-valued), column."""
    return tuple(
        Attribute(tag=tag, vr=vr.rstrip("*"), level=level, column=column, multiple=vr.endswith("*"))
        for tag, vr, column in rows
    )


def _counted(*rows: tuple[int, str, Level]) -> tuple[Attribute, ...]:
    return tuple(
        Attribute(tag=tag, vr=vr, level=level, column=None, multiple=vr != "IS")
        for tag, vr, level in rows
    )


PATIENT_ID = 0x00100020
PATIENT_NAME = 0x00100010
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E
SOP_INSTANCE_UID = 0x00080018
SOP_CLASS_UID = 0x00080016
AVAILABLE_TRANSFER_SYNTAX_UID = 0x00083002
MODALITIES_IN_STUDY = 0x00080061
SOP_CLASSES_IN_STUDY = 0x00080062
NUMBER_OF_PATIENT_RELATED_STUDIES = 0x00201200
NUMBER_OF_PATIENT_RELATED_SERIES = 0x00201202
NUMBER_OF_PATIENT_RELATED_INSTANCES = 0x00201204
NUMBER_OF_STUDY_RELATED_SERIES = 0x00201206
NUMBER_OF_STUDY_RELATED_INSTANCES = 0x00201208
NUMBER_OF_SERIES_RELATED_INSTANCES = 0x00201209

UNIQUE_KEYS = {
    Level.PATIENT: PATIENT_ID,
    Level.STUDY: STUDY_INSTANCE_UID,
    Level.SERIES: SERIES_INSTANCE_UID,
    Level.IMAGE: SOP_INSTANCE_UID,
}

ATTRIBUTES: tuple[Attribute, ...] = (
    *_attributes(
        Level.PATIENT,
        (PATIENT_ID, "LO", "patient_id"),
        (PATIENT_NAME, "PN", "patient_name"),
        (0x00100021, "LO", "issuer_of_patient_id"),
        (0x00100030, "DA", "patient_birth_date"),
        (0x00100032, "TM", "patient_birth_time"),
        (0x00100040, "CS", "patient_sex"),
        (0x00101000, "LO*", "other_patient_ids"),
        (0x00101001, "PN*", "other_patient_names"),
        (0x00102160, "SH", "ethnic_group"),
        (0x00104000, "LT", "patient_comments"),
    ),
    *_attributes(
        Level.STUDY,
        (STUDY_INSTANCE_UID, "UI", "study_instance_uid"),
        (0x00080020, "DA", "study_date"),
        (0x00080030, "TM", "study_time"),
        (0x00080050, "SH", "accession_number"),
        (0x00080090, "PN", "referring_physician_name"),
        (0x00080201, "SH", "timezone_offset_from_utc"),
        (0x00081030, "LO", "study_description"),
        (0x00081060, "PN*", "name_of_physicians_reading_study"),
        (0x00081080, "LO*", "admitting_diagnoses_description"),
        (0x00101010, "AS", "patient_age"),
        (0x00101020, "DS", "patient_size"),
        (0x00101030, "DS", "patient_weight"),
        (0x00102180, "SH", "occupation"),
        (0x001021B0, "LT", "additional_patient_history"),
        (0x00200010, "SH", "study_id"),
    ),
    *_attributes(
        Level.SERIES,
        (SERIES_INSTANCE_UID, "UI", "series_instance_uid"),
        (0x00080021, "DA", "series_date"),
        (0x00080031, "TM", "series_time"),
        (0x00080060, "CS", "modality"),
        (0x00080070, "LO", "manufacturer"),
        (0x00080080, "LO", "institution_name"),
        (0x00081010, "SH", "station_name"),
        (0x0008103E, "LO", "series_description"),
        (0x00081040, "LO", "institutional_department_name"),
        (0x00081050, "PN*", "performing_physician_name"),
        (0x00081070, "PN*", "operators_name"),
        (0x00081090, "LO", "manufacturer_model_name"),
        (0x00180015, "CS", "body_part_examined"),
        (0x00181030, "LO", "protocol_name"),
        (0x00185100, "CS", "patient_position"),
        (0x00200011, "IS", "series_number"),
        (0x00200052, "UI", "frame_of_reference_uid"),
        (0x00200060, "CS", "laterality"),
        (0x00400244, "DA", "performed_procedure_step_start_date"),
        (0x00400245, "TM", "performed_procedure_step_start_time"),
        (0x00400253, "SH", "performed_procedure_step_id"),
        (0x00400254, "LO", "performed_procedure_step_description"),
    ),
    *_attributes(
        Level.IMAGE,
        (SOP_INSTANCE_UID, "UI", "sop_instance_uid"),
        (SOP_CLASS_UID, "UI", "sop_class_uid"),
        (AVAILABLE_TRANSFER_SYNTAX_UID, "UI", "transfer_syntax_uid"),
        (0x00080008, "CS*", "image_type"),
        (0x00080012, "DA", "instance_creation_date"),
        (0x00080013, "TM", "instance_creation_time"),
        (0x00080022, "DA", "acquisition_date"),
        (0x00080023, "DA", "content_date"),
        (0x0008002A, "DT", "acquisition_date_time"),
        (0x00080032, "TM", "acquisition_time"),
        (0x00080033, "TM", "content_time"),
        (0x00200012, "IS", "acquisition_number"),
        (0x00200013, "IS", "instance_number"),
        (0x00204000, "LT", "image_comments"),
        (0x00280004, "CS", "photometric_interpretation"),
        (0x00280008, "IS", "number_of_frames"),
        (0x00280010, "US", "image_rows"),
        (0x00280011, "US", "image_columns"),
        (0x00280100, "US", "bits_allocated"),
        (0x00700080, "CS", "content_label"),
        (0x00700081, "LO", "content_description"),
    ),
    *_counted(
        (NUMBER_OF_PATIENT_RELATED_STUDIES, "IS", Level.PATIENT),
        (NUMBER_OF_PATIENT_RELATED_SERIES, "IS", Level.PATIENT),
        (NUMBER_OF_PATIENT_RELATED_INSTANCES, "IS", Level.PATIENT),
        (MODALITIES_IN_STUDY, "CS", Level.STUDY),
        (SOP_CLASSES_IN_STUDY, "UI", Level.STUDY),
        (NUMBER_OF_STUDY_RELATED_SERIES, "IS", Level.STUDY),
        (NUMBER_OF_STUDY_RELATED_INSTANCES, "IS", Level.STUDY),
        (NUMBER_OF_SERIES_RELATED_INSTANCES, "IS", Level.SERIES),
    ),
)

BY_TAG = {attribute.tag: attribute for attribute in ATTRIBUTES}


def at_level(level: Level) -> tuple[Attribute, ...]:
    """The attributes that have a column at `level`, in the table's order."""
    return tuple(a for a in ATTRIBUTES if a.level is level and a.column is not None)


# The syntax comes from the presentation context: an object does not carry it outside its file meta.
CAPTURED_TAGS = frozenset(
    a.tag for a in ATTRIBUTES if a.column is not None and a.tag != AVAILABLE_TRANSFER_SYNTAX_UID
) | {SPECIFIC_CHARACTER_SET}
