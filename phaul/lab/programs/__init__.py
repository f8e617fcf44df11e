"""Programs that `phaul.lab` runs on its hosts, with the hosts' own Python: they import nothing but its library."""
