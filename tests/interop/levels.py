"""Every model of query/retrieve at each of its levels, and what is held there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pydicom

from dcmhaul.objects.part10 import FileInstance
from dcmhaul.objects.sources import open_entries
from dcmhaul.objects.synth import write_studies
from tests.interop import stores

if TYPE_CHECKING:
    from pathlib import Path

# PS3.4 §C.6: the unique key of each level, from the top; and the levels of each model, by DCMTK's flag.
UNIQUE_KEYS = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
LEVELS = {
    "-P": ("PATIENT", "STUDY", "SERIES", "IMAGE"),
    "-S": ("STUDY", "SERIES", "IMAGE"),
    "-O": ("PATIENT", "STUDY"),
}
ALL = [(model, level) for model, levels in LEVELS.items() for level in levels]

# The classes of FIND, MOVE and GET are numbered alike (PS3.6 Table A-1).
_MODELS = {"-P": "1", "-S": "2", "-O": "3"}
_OPERATIONS = {"FIND": "1", "MOVE": "2", "GET": "3"}


def class_uid(model: str, operation: str) -> str:
    """The SOP class of `-P`, `-S` or `-O`."""
    return f"1.2.840.10008.5.1.4.1.2.{_MODELS[model]}.{_OPERATIONS[operation]}"


@dataclass(frozen=True)
class Held:
    """Files below a folder, which a peer holds, too."""

    folder: Path

    @cached_property
    def instances(self) -> list[FileInstance]:
        found = [e for e in open_entries([self.folder]) if isinstance(e, FileInstance)]
        return sorted(found, key=lambda one: one.path)

    @cached_property
    def headers(self) -> list[pydicom.Dataset]:
        return [pydicom.dcmread(one.path, stop_before_pixels=True) for one in self.instances]

    def keys(self, model: str, level: str) -> dict[str, str]:
        """The unique keys of the first thing at a level: what a retrieve of it needs in this model."""
        levels = LEVELS[model]
        named = levels[: levels.index(level) + 1]
        return {UNIQUE_KEYS[one]: str(self.headers[0][UNIQUE_KEYS[one]].value) for one in named}

    def below(self, level: str) -> dict[str, tuple[str, str]]:
        """What `stores.received` must say when that thing has been retrieved."""
        key = UNIQUE_KEYS[level]
        first = self.headers[0][key].value
        pairs = zip(self.headers, self.instances, strict=True)
        return stores.expected([one for header, one in pairs if header[key].value == first])

    def unique(self, model: str, level: str) -> set[tuple[str, str]]:
        """Unique key and patient's name of all that a query finds below the first thing one level up."""
        levels = LEVELS[model]
        above = levels[: levels.index(level)]
        return {
            (str(header[UNIQUE_KEYS[level]].value), str(header.PatientName))
            for header in self.headers
            if all(header[UNIQUE_KEYS[a]] == self.headers[0][UNIQUE_KEYS[a]] for a in above)
        }

    def question(self, model: str, level: str) -> dict[str, str]:
        """The keys of that query: single values above the level, and what is asked for."""
        keys = self.keys(model, level) | {UNIQUE_KEYS[level]: ""}
        return {"QueryRetrieveLevel": level, **keys, "PatientName": ""}


def typed(keys: dict[str, str], level: str | None = None) -> list[str]:
    """The same as `-k` options."""
    whole = keys if level is None else {"QueryRetrieveLevel": level, **keys}
    return [word for key, value in whole.items() for word in ("-k", f"{key}={value}")]


def make(folder: Path) -> Held:
    """Two patients with a study each, of two series of two instances."""
    write_studies(folder, 2, 2, 2, "CT", "levels", rows=16, columns=16)
    return Held(folder)
