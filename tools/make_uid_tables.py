"""Writes src/dcmhaul/_uid_tables.py from pydicom's registry of UIDs (PS3.6 Annex A).

Run it with a newer pydicom to take over new UIDs: `.venv/bin/python tools/make_uid_tables.py`.
"""

from __future__ import annotations

from pathlib import Path

from pydicom._uid_dict import UID_dictionary

TARGET = Path(__file__).parents[1] / "src" / "dcmhaul" / "_uid_tables.py"

# In PS3.6 2024 and later, not yet in every pydicom that we allow.
EXTRA_TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
    # Not in PS3.6 at all, yet met in files: implicit VR little endian, the pixels big endian.
    "1.2.840.113619.5.2": "GE Private Implicit VR Big Endian",
}
EXTRA_STORAGE = {
    "1.2.840.10008.5.1.4.1.1.9.100.1": "Waveform Presentation State Storage",
    "1.2.840.10008.5.1.4.1.1.9.100.2": "Waveform Acquisition Presentation State Storage",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.66.8": "Height Map Segmentation Storage",
}
# Their names say Storage, but nothing is stored through them: commitment, and the DICOMDIR.
NO_STORAGE = {"1.2.840.10008.1.3.10", "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.2"}
OTHER_TYPES = {
    "SOP Class",
    "Meta SOP Class",
    "Service Class",
    "Application Context Name",
    "Well-known SOP Instance",
}

HEADER = '''"""UIDs of PS3.6 Annex A, made by tools/make_uid_tables.py: do not edit."""

from __future__ import annotations

__all__ = ["OTHER_UIDS", "STORAGE_SOP_CLASSES", "TRANSFER_SYNTAXES"]
'''


def sort_key(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]


def tables() -> dict[str, dict[str, str]]:
    """The three tables, each ordered by the numbers of the UID."""
    syntaxes = dict(EXTRA_TRANSFER_SYNTAXES)
    storage = dict(EXTRA_STORAGE)
    others = {}
    for uid, (title, kind, _info, _retired, _keyword) in UID_dictionary.items():
        if kind == "Transfer Syntax":
            syntaxes[uid] = title
        elif kind == "SOP Class" and "Storage" in title and uid not in NO_STORAGE:
            storage[uid] = title
        elif kind in OTHER_TYPES and title:
            others[uid] = title
    named = {
        "TRANSFER_SYNTAXES": syntaxes,
        "STORAGE_SOP_CLASSES": storage,
        "OTHER_UIDS": others,
    }
    return {
        table: {uid: rows[uid] for uid in sorted(rows, key=sort_key)}
        for table, rows in named.items()
    }


def render() -> str:
    """The text of the generated module."""
    parts = [HEADER]
    for table, rows in tables().items():
        body = "\n".join(f'    "{uid}": "{title}",' for uid, title in rows.items())
        parts.append(f"\n{table}: dict[str, str] = {{\n{body}\n}}\n")
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
