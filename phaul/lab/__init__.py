"""Two hosts and a client on one machine, as Linux namespaces: for tests, the demo and anyone who wants to try phaul.

`phaul.lab.cluster.Lab` is the way in. Called by `phaul.cli.lab`, the demo, the benchmarks and the tests; never by the
agent. The package runs synchronously, starts its own children (`phaul.lab.commands`), and touches nothing of the
machine's own network: every link and address is in a namespace that `Lab.down` drops.
"""
