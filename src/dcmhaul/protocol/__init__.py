"""What may happen next, without I/O: state table, negotiation, upper layer, DIMSE messages."""
