"""Dumps at rest: directories that hold a workload until somebody restores it."""
