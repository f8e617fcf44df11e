"""Bringing phaul to other hosts over SSH, and making packages of it. Called by `phaul.cli`; knows no agents."""
