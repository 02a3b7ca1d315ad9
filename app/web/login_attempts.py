"""How often a password may be tried: quickly a few times, then slowly, by address and by all addresses together."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_ADDRESSES = 1024  # remembered at once; who is forgotten starts anew, but the limit over all stays


@dataclass(frozen=True)
class RateLimit:
    """A token bucket: so many wrong passwords at once, then one every so many seconds."""

    burst: int
    refill_seconds: float


@dataclass
class TokenBucket:
    tokens: float
    updated_at: float  # when `left` was counted


PER_ADDRESS, OVERALL = RateLimit(5, 30.0), RateLimit(60, 2.0)


class LoginAttempts:
    """Wrong passwords so far. A reader of the clock is taken, so that tests need not wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.overall = TokenBucket(OVERALL.burst, clock())
        self.by_address: OrderedDict[str, TokenBucket] = OrderedDict()

    def seconds_to_wait(self, address: str) -> float:
        """Seconds until a password from this address is looked at; 0: now."""
        own_bucket = self.by_address.get(network_of(address))
        return max(self._wait_for_token(self.overall, OVERALL), self._wait_for_token(own_bucket, PER_ADDRESS) if own_bucket else 0.0)

    def record_failure(self, address: str) -> None:
        """Count a wrong password."""
        own_bucket = self.by_address.setdefault(network_of(address), TokenBucket(PER_ADDRESS.burst, self.clock()))
        self.by_address.move_to_end(network_of(address))
        for bucket, limit in ((self.overall, OVERALL), (own_bucket, PER_ADDRESS)):
            self._refill(bucket, limit)
            bucket.tokens = max(0.0, bucket.tokens - 1)
        while len(self.by_address) > MAX_ADDRESSES:
            self.by_address.popitem(last=False)

    def _wait_for_token(self, bucket: TokenBucket, limit: RateLimit) -> float:
        self._refill(bucket, limit)
        return max(0.0, 1 - bucket.tokens) * limit.refill_seconds

    def _refill(self, bucket: TokenBucket, limit: RateLimit) -> None:
        now = self.clock()
        bucket.tokens, bucket.updated_at = min(limit.burst, bucket.tokens + (now - bucket.updated_at) / limit.refill_seconds), now


def network_of(address: str) -> str:
    """The address; of IPv6 the /64, all of which one customer has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else str(ip)
