"""Showing what others wrote: names in a stream or in Redis's keyspace may hold what drives a terminal."""

__all__ = ["printable"]


def printable(text: str) -> str:
    """Return the text with what cannot be printed escaped: line ends, terminal sequences, reversed writing."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
