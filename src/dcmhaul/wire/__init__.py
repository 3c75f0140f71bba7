"""Bytes to values and back: PDUs, association items, command sets, Part-10 headers. No I/O, no clock."""
