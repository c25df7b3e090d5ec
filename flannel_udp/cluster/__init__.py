"""What is kept in etcd: the network config and the leases, and what reads and writes them."""
