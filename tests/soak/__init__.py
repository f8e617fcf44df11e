"""The soak: a Redis under load that moves back and forth for long, with faults in between."""
