"""dcmhaul moves DICOM studies over the network, and proves that nothing was lost.

The names of the library, `dcmhaul.library`, are offered here too; it is imported when one is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dcmhaul._version import __version__

if TYPE_CHECKING:
    from dcmhaul.library import (
        Archive,
        Association,
        DcmhaulError,
        FailedEntry,
        FindResponse,
        FindScp,
        FolderSinks,
        GetScp,
        NormalizedAnswer,
        NormalizedRefused,
        NormalizedRequest,
        NormalizedResponse,
        NormalizedScp,
        Peer,
        QueryModel,
        RetrieveResponse,
        Service,
        SkippedEntry,
        SopClass,
        StorageScp,
        StoreOutcome,
        Timeouts,
        TlsSettings,
        VerificationScp,
        commit,
        describe,
        echo,
        find,
        get,
        move,
        n_action,
        n_create,
        n_delete,
        n_event_report,
        n_get,
        n_set,
        open_archive,
        open_association,
        send,
        serve,
    )

__all__ = [
    "__version__",
    "Archive",
    "Association",
    "DcmhaulError",
    "FailedEntry",
    "FindResponse",
    "FindScp",
    "FolderSinks",
    "GetScp",
    "NormalizedAnswer",
    "NormalizedRefused",
    "NormalizedRequest",
    "NormalizedResponse",
    "NormalizedScp",
    "Peer",
    "QueryModel",
    "RetrieveResponse",
    "Service",
    "SkippedEntry",
    "SopClass",
    "StorageScp",
    "StoreOutcome",
    "Timeouts",
    "TlsSettings",
    "VerificationScp",
    "commit",
    "describe",
    "echo",
    "find",
    "get",
    "move",
    "n_action",
    "n_create",
    "n_delete",
    "n_event_report",
    "n_get",
    "n_set",
    "open_archive",
    "open_association",
    "send",
    "serve",
]


def __getattr__(name: str) -> Any:
    """A name of the library. AttributeError for any other, such as a module that is not imported yet."""
    if name in __all__:
        return getattr(import_module("dcmhaul.library"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
