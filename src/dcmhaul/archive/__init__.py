"""The embedded archive: object files, their index, and the SCP side of the services."""

from dcmhaul.archive.importing import ImportSummary
from dcmhaul.archive.index import Duplicates, Totals
from dcmhaul.archive.recovery import RecoveryReport
from dcmhaul.archive.scp import Archive, ArchiveStatistics, open_archive

__all__ = [
    "Archive",
    "ArchiveStatistics",
    "Duplicates",
    "ImportSummary",
    "RecoveryReport",
    "Totals",
    "open_archive",
]
