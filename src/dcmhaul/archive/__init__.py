"""The embedded archive: object files, their index, the SCP side of the services, and its moves.

Each name is imported when it is first used: matching alone is of use to those who need no database.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcmhaul.archive.importing import ImportSummary
    from dcmhaul.archive.index import Duplicates, Totals
    from dcmhaul.archive.moves import MoveDestination, MovePolicy, MoveStatistics, OutgoingMoves
    from dcmhaul.archive.recovery import RecoveryReport
    from dcmhaul.archive.scp import Archive, ArchiveStatistics, open_archive
    from dcmhaul.archive.worklist import Worklist

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
    "Worklist",
    "open_archive",
]

_MODULES = {
    "ImportSummary": "importing",
    "Duplicates": "index",
    "Totals": "index",
    "MoveDestination": "moves",
    "MovePolicy": "moves",
    "MoveStatistics": "moves",
    "OutgoingMoves": "moves",
    "RecoveryReport": "recovery",
    "Worklist": "worklist",
}


def __getattr__(name: str) -> Any:
    """A name of `__all__`. AttributeError for any other, such as a module that is not imported yet."""
    if name in __all__:
        module = import_module(f"dcmhaul.archive.{_MODULES.get(name, 'scp')}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
