"""Trio moves the bytes: sockets, associations, the listener."""
