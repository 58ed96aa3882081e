"""Mutation IDs: 11 hexadecimal digits of milliseconds on the writer's clock, the client's ID, a number."""

__all__ = ["made_ms"]

MILLISECOND_DIGITS = 11


def made_ms(mutation_id: str | bytes) -> int:
    """Return when a mutation was made, in milliseconds since 1970; 0 where the ID, a forged one, does not say."""
    try:
        return int(mutation_id[:MILLISECOND_DIGITS], 16)
    except ValueError:
        return 0
