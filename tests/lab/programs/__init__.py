"""Programs of the tests that run inside the lab's hosts, as `python3 -m witness.NAME`; the standard library only,
and `websockets`."""
