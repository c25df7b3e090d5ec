#include "limiter.h"

bool limiter_take(struct limiter *limiter, uint32_t rate, uint32_t burst, uint32_t events, uint64_t now_ns)
{
    const uint64_t cost = UINT64_C(1000000000) / rate;
    const uint64_t full = cost * burst;
    uint64_t waited = limiter->updated_ns == 0 ? full : now_ns - limiter->updated_ns;
    limiter->updated_ns = now_ns;
    limiter->tokens = waited >= full - limiter->tokens ? full : limiter->tokens + waited;
    if (limiter->tokens < cost * events)
        return false;
    limiter->tokens -= cost * events;
    return true;
}
