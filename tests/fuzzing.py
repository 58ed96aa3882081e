"""How the fuzzers run: for a while, and first over what is kept in ``fuzz/corpus``.

FUZZ_SECONDS says for how long all of them together; each gets an equal share. A failure prints what to keep: put
it there under a name that says what it broke, so that it is tried first from then on.
"""

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

__all__ = ["CALL_SECONDS_MAX", "CORPUS", "SECONDS", "fuzz", "kept"]

CORPUS: Final = Path(__file__).parent / "fuzz" / "corpus"
SECONDS: Final = float(os.environ.get("FUZZ_SECONDS", "11"))
FUZZERS: Final = 11
"""How many share the time."""

EXAMPLES: Final = 500
CALL_SECONDS_MAX: Final = 5.0
"""No call may take so long, even on a busy machine: it is given kilobytes."""


def kept(folder: str) -> dict[str, bytes]:
    """Return what is kept for a fuzzer, by name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / folder).iterdir())}


def fuzz(check: Callable[[Any], None], inputs: st.SearchStrategy[Any]) -> None:
    """Try a check on random inputs until this fuzzer's share of the time is over; at least one round."""
    deadline = time.monotonic() + SECONDS / FUZZERS
    tuned = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.normal,
    )
    while True:
        # Each round has a seed of its own: within one, Hypothesis does not repeat itself.
        seed(secrets.randbits(64))(tuned(given(inputs)(timed(check))))()
        if time.monotonic() >= deadline:
            return


def timed(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a check that fails where it takes very long."""

    def call(value: Any) -> None:
        begun = time.monotonic()
        check(value)
        assert time.monotonic() - begun < CALL_SECONDS_MAX, "it takes very long"

    return call
