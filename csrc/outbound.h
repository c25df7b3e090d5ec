/* outbound.h - packets from the TUN device to the socket. */
#pragma once

#include "tunnel.h"

/* One turn: reads at most `limit` packets (1..TURN_PACKETS) from the TUN into the empty outbox, and sends them. 0; 1
 * when the socket is full and the rest waits in the outbox; -errno when the worker cannot continue. */
int outbound_serve(struct tunnel *tunnel, size_t limit);

/* Sends what waits in the outbox. Returns as above. */
int outbound_flush(struct tunnel *tunnel);
