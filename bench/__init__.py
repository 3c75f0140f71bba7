"""Benchmarks, one script a question: `python -m bench.loopback`, `.memory`, `.startup`."""
