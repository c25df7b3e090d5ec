"""The command line: flags and FLANNELD_* variables, sub-commands, exit codes."""
