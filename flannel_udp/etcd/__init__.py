"""Access to etcd: calls, watch, members, faults, certificates."""

import os

# Read when grpc is imported: without it the C core prints lines of its own on stderr.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
