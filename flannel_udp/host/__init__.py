"""The machine: netlink, interface choice, locks, systemd, subnet.env."""
