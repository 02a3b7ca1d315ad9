"""Rate limits for wrong passwords, per address and over all addresses: a few quick attempts, then slow ones."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_ADDRESSES = 1024  # tracked at once; a forgotten address starts again, but the overall limit stays


@dataclass(frozen=True)
class RateLimit:
    """The limits of a token bucket: `burst` wrong passwords at once, then one every `refill_seconds`."""

    burst: int
    refill_seconds: float


@dataclass
class TokenBucket:
    tokens: float
    updated_at: float  # clock time of the last refill


PER_ADDRESS, OVERALL = RateLimit(5, 30.0), RateLimit(60, 2.0)


class LoginAttempts:
    """Counts of wrong passwords. The clock is an argument, so that tests need not wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.overall = TokenBucket(OVERALL.burst, clock())
        self.by_address: OrderedDict[str, TokenBucket] = OrderedDict()

    def seconds_to_wait(self, address: str) -> float:
        """Return the seconds until a password from this address is checked; 0: now."""
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
    """Return the address; for IPv6 its /64 network, which usually belongs to one customer."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else str(ip)
