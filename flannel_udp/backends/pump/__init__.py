"""The udp backend: a TUN device and a UDP socket, joined by the packet pump in C."""
