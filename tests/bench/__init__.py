"""The benchmark: phaul against the same done by hand with bare CRIU. `python -m tests.bench`; never run by pytest."""
