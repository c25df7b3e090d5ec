"""Hosts, containers and a real etcd in network namespaces of one machine."""
