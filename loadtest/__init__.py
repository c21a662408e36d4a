"""Load and throughput measurements: `python -m quire.loadtest --help`, or `quire bench`."""
