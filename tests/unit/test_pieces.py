"""Cutting entries into calls."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from writebehind.engine.core.composing import pieces


@given(st.lists(st.integers(0, 12)), st.integers(1, 5), st.integers(1, 20))
def test_pieces(sizes: list[int], entries_max: int, bytes_max: int) -> None:
    """They are whole and in order, as large as may be, and beyond the limit only where a single entry is."""
    payloads = [b"x" * size for size in sizes]
    cuts = [payloads[cut] for cut in pieces(iter(payloads), entries_max, bytes_max)]
    assert [payload for piece in cuts for payload in piece] == payloads
    for piece in cuts:
        assert 1 <= len(piece) <= entries_max
        assert len(piece) == 1 or sum(map(len, piece)) <= bytes_max
    for piece, following in itertools.pairwise(cuts):
        assert len(piece) == entries_max or sum(map(len, piece)) + len(following[0]) > bytes_max
