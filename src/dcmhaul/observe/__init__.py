"""Numbers for others: the Prometheus collector."""
