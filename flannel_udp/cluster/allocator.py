"""Which subnet a new host gets (pure)."""

import random
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from itertools import islice

from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.errors import NetworkExhaustedError

CANDIDATES = 100


def choose(config: NetworkConfig, taken: Iterable[IPv4Network], rng: random.Random) -> IPv4Network:
    """A random one of the first 100 free subnets from SubnetMin to SubnetMax, as in flannel.

    A subnet that overlaps a taken network of any length is not free. Costs O(n log n) in the number
    of taken networks, for a range of any size. Raises NetworkExhaustedError.
    """
    candidates = list(islice(_free_subnets(config, taken), CANDIDATES))
    if not candidates:
        raise NetworkExhaustedError(
            f"no subnet of length /{config.subnet_len} is free from {config.subnet_min} to"
            f" {config.subnet_max}; delete unused leases or enlarge Network"
        )
    return rng.choice(candidates)


def is_free(subnet: IPv4Network, taken: Iterable[IPv4Network]) -> bool:
    """Whether ``subnet`` overlaps none of the taken networks."""
    return not any(subnet.overlaps(other) for other in taken)


def _free_subnets(config: NetworkConfig, taken: Iterable[IPv4Network]) -> Iterator[IPv4Network]:
    size = 1 << (32 - config.subnet_len)
    start, end = int(config.subnet_min), int(config.subnet_max)
    for first, last in sorted(
        (int(other.network_address), int(other.broadcast_address)) for other in taken
    ):
        while start + size <= first and start <= end:
            yield IPv4Network((start, config.subnet_len))
            start += size
        if last >= start:  # continue behind it, at the next boundary
            start = (last // size + 1) * size
    while start <= end:
        yield IPv4Network((start, config.subnet_len))
        start += size
