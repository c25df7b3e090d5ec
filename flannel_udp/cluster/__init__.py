"""Everything that lies in etcd: network config, leases, and who reads and writes them."""
