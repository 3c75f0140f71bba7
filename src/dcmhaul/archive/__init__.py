"""The embedded archive: object files, their index, the SCP side of the services, and its moves."""

from dcmhaul.archive.importing import ImportSummary
from dcmhaul.archive.index import Duplicates, Totals
from dcmhaul.archive.moves import MoveDestination, MovePolicy, MoveStatistics, OutgoingMoves
from dcmhaul.archive.recovery import RecoveryReport
from dcmhaul.archive.scp import Archive, ArchiveStatistics, open_archive

__all__ = [
    "Archive",
    "ArchiveStatistics",
    "Duplicates",
    "ImportSummary",
    "MoveDestination",
    "MovePolicy",
    "MoveStatistics",
    "OutgoingMoves",
    "RecoveryReport",
    "Totals",
    "open_archive",
]
