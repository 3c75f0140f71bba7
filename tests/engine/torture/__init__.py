"""kill -9 of every process that takes part in a transfer, again and again, and what must hold after it."""
