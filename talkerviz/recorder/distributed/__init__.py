"""Several processes: collectives, ranks, and the offsets between their clocks."""
