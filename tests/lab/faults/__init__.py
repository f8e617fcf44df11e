"""The fault matrix: every fault in every phase of a migration, on real CRIU, judged from outside."""
