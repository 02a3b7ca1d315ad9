"""How often a password may be tried: quickly a few times, then slowly, by address and by all addresses together."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

ADDRESSES = 1024  # remembered at once; who is forgotten starts anew, but the limit over all stays


@dataclass(frozen=True)
class Pace:
    """A token bucket: so many wrong passwords at once, then one every so many seconds."""

    burst: int
    seconds: float


@dataclass
class Bucket:
    left: float
    at: float  # when `left` was counted


EACH, ALL = Pace(5, 30.0), Pace(60, 2.0)


class Attempts:
    """Wrong passwords so far. A reader of the clock is taken, so that tests need not wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.all = Bucket(ALL.burst, clock())
        self.by_address: OrderedDict[str, Bucket] = OrderedDict()

    def wait(self, address: str) -> float:
        """Seconds until a password from this address is looked at; 0: now."""
        mine = self.by_address.get(network(address))
        return max(self._missing(self.all, ALL), self._missing(mine, EACH) if mine else 0.0)

    def failed(self, address: str) -> None:
        """Count a wrong password."""
        mine = self.by_address.setdefault(network(address), Bucket(EACH.burst, self.clock()))
        self.by_address.move_to_end(network(address))
        for bucket, pace in ((self.all, ALL), (mine, EACH)):
            self._refill(bucket, pace)
            bucket.left = max(0.0, bucket.left - 1)
        while len(self.by_address) > ADDRESSES:
            self.by_address.popitem(last=False)

    def _missing(self, bucket: Bucket, pace: Pace) -> float:
        self._refill(bucket, pace)
        return max(0.0, 1 - bucket.left) * pace.seconds

    def _refill(self, bucket: Bucket, pace: Pace) -> None:
        now = self.clock()
        bucket.left, bucket.at = min(pace.burst, bucket.left + (now - bucket.at) / pace.seconds), now


def network(address: str) -> str:
    """The address; of IPv6 the /64, all of which one customer has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else str(ip)
