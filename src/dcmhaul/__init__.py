"""dcmhaul moves DICOM studies over the network, and proves that nothing was lost."""

from dcmhaul._version import __version__

__all__ = ["__version__"]
