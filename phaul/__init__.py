"""phaul moves running Linux processes from one host to another and keeps their TCP connections."""

__version__ = "0.1.0"
