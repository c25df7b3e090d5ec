"""flannel's UDP backend: lease a subnet in etcd, carry container packets over UDP."""

__version__ = "0.1.0"
