"""Load and throughput measurements: `python -m loadtest --help`, or `quire bench`."""
