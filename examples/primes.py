"""What the two servers compute.

It is a module of its own, so that workers, which import it, need not import a web framework.
"""

LARGEST = 100_000_000


def count_primes(below: int) -> int:
    """Count the primes below a number by trial division: slow, and nothing but Python."""
    count = 0
    for n in range(2, below):
        for divisor in range(2, int(n**0.5) + 1):
            if n % divisor == 0:
                break
        else:
            count += 1
    return count


def parse_below(text: str) -> int:
    """Read the number from a request; ValueError says what is wrong with it."""
    if not text.isascii() or not text.isdigit() or int(text[:10]) > LARGEST or len(text) > 9:
        raise ValueError(f"below must be an integer from 0 to {LARGEST:,}, not {text[:20]!r}")
    return int(text)
