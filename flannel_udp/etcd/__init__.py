"""The door to etcd: calls, watch, members, faults, certificates."""
