"""The embedded archive: store, index, and the SCP side of its services."""
