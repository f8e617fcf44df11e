"""The decisions: what is compared, in which order things happen, what is undone. No I/O, no clock, no gRPC here."""
