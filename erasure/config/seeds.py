"""The range of seeds, and the seeds that one job derives from its own. No torch here."""

from hashlib import blake2b

from erasure.errors import UserError

MAX_SEED = 2**63 - 1  # of a job, a suite or the page; a prompt list may have any seed that torch takes, up to 2^64 - 1
TORCH_SEED_LIMIT = 2**64  # torch.Generator.manual_seed takes seeds below this


def check_seed(seed: int) -> int:
    """Return the seed if it is valid.

    Raises:
        UserError: it is below 0 or above 2^63 - 1.
    """
    if not 0 <= seed <= MAX_SEED:
        seed_text = str(seed) if abs(seed) < 10**40 else "one of more than 40 digits"  # Python refuses to print 5,000
        raise UserError(f"a seed is a whole number from 0 to {MAX_SEED} (2^63 - 1), got {seed_text}.")
    return seed


def parse_seed(text: str) -> int:
    """Parse a seed that was typed into a text field.

    Raises:
        UserError: not a whole number, or as `check_seed`.
    """
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 40):
        raise UserError(f"a seed is a whole number from 0 to {MAX_SEED} (2^63 - 1), got {digits[:40]!r}.")
    return check_seed(int(digits))


def derive_seed(seed: int, index: int) -> int:
    """Return the seed of the k-th stream of random numbers of a job, within torch's 64 bits.

    It is seed * 1,000,003 + k while that fits, as it does for seeds below 2^44, and a hash of both otherwise.
    """
    linear = seed * 1_000_003 + index
    return linear if linear < TORCH_SEED_LIMIT else int.from_bytes(blake2b(f"{seed}|{index}".encode(), digest_size=8).digest(), "big") >> 1
