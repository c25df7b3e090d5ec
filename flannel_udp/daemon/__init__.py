"""The daemon: the order of start and stop, and the settings of this start."""
