"""Every error that a user can see. Its message names what was tried, what was found, what to do."""


class FlannelError(Exception):
    """Base of all of them: the program prints the message as one line and exits with 1."""


class UsageError(FlannelError):
    """A flag, an environment variable or an argument is wrong."""


class NetworkConfigError(FlannelError):
    """The network config in etcd is missing or invalid; the daemon waits for a good one."""


class BackendTypeError(FlannelError):
    """The network config names a backend other than udp."""


class LeaseDecodeError(FlannelError):
    """A key or value under ``<prefix>/subnets/`` is not a lease; it is skipped with one warning."""


class NetworkExhaustedError(FlannelError):
    """No subnet between SubnetMin and SubnetMax is free."""


class ReservationError(FlannelError):
    """The subnet an operator reserved for this host does not fit the network config."""


class LeaseLostError(FlannelError):
    """Our lease was revoked or taken over: forwarding stops and the program exits with 1."""


class LeaseContestedError(FlannelError):
    """In data that replaced etcd's, a key gives our subnet to another host; it may be outdated."""


class EtcdError(FlannelError):
    """An etcd call failed (unreachable, refused, TLS, login, deadline); a later try may succeed."""


class CertificateError(FlannelError):
    """A certificate or key file cannot be read or used."""


class InterfaceError(FlannelError):
    """No external interface or address fits the flags."""


class DeviceError(FlannelError):
    """The TUN device, a route or the UDP socket could not be set up."""


class ShortageError(DeviceError):
    """As DeviceError, because descriptors or memory were short; a later try will succeed."""


class DeviceGoneError(DeviceError):
    """Another program has removed the TUN device."""


class TunnelLostError(FlannelError):
    """The TUN device or the UDP socket was lost repeatedly, or cannot be opened again."""


class AddressChangedError(FlannelError):
    """The external interface has another address; the daemon must start again to publish it."""


class FirewallError(FlannelError):
    """The firewall's rules cannot be read or written."""


class HandoverError(FlannelError):
    """What the previous process left cannot be used; the message is a clause with the reason."""


class SubnetFileError(FlannelError):
    """subnet.env or a docker options file cannot be read, understood or written."""


class StatusError(FlannelError):
    """The status of the daemon cannot be read, or no daemon runs."""


class ClusterError(FlannelError):
    """The network config or a lease in etcd cannot be changed as the operator asked."""


class EtcdProgramError(FlannelError):
    """No etcd could be started on this host."""


class LabError(FlannelError):
    """The lab could not be built: a missing program, right or kernel feature."""
