"""Lines that tests add to the summary of the run, whether they pass or fail."""

FAULTS: list[str] = []  # the times until each fault was noticed and over, and the lost packets
