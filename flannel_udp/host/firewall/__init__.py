"""The overlay's rules in the host's firewall, by iptables or nftables."""
