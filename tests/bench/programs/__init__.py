"""What runs on the hosts of the lab during the benchmark, with the hosts' own Python and nothing but its library."""
