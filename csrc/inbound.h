/* inbound.h - packets from the socket to the TUN device. */
#pragma once

#include "tunnel.h"

/* One turn: receives at most `limit` datagrams, or as many receives of merged ones, and writes them to the TUN. 0, or
 * -errno when the worker cannot continue. */
int inbound_serve(struct tunnel *tunnel, size_t limit);
