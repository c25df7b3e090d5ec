"""What tests tell at the end of the run, whether they pass or fail."""

FAULTS: list[str] = []  # how long each lasted for the daemons, and what it cost
