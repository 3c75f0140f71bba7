"""Scripts that make parts of the source; none of them is installed."""
