"""Fuzzing of everything that a stranger's bytes reach: `make fuzz`, and a short run in `make test`. See `__main__`."""
