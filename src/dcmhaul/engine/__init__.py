"""Many associations at once: pool, scheduler, relay, counters. Starts nothing on import."""
