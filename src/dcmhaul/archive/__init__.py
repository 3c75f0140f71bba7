"""The embedded archive: object files, their index, and the SCP side of the services."""

from dcmhaul.archive.index import Totals
from dcmhaul.archive.recovery import RecoveryReport
from dcmhaul.archive.scp import Archive, ArchiveStatistics, ImportSummary, open_archive

__all__ = [
    "Archive",
    "ArchiveStatistics",
    "ImportSummary",
    "RecoveryReport",
    "Totals",
    "open_archive",
]
