"""Everything worth measuring on a Mac, once: `python -m benchmarks.mac`."""
