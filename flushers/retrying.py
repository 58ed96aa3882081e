"""Trying again, with a backoff, what fails for a reason that passes."""

import logging
import threading

import tenacity

from writebehind.flushers.failures import PASSING, classify, describe
from writebehind.flushers.transaction import Transaction

__all__ = ["retrying"]

logger = logging.getLogger(__name__)

FIRST_SECONDS_MAX = 0.05
"""The longest pause after the first failure; it doubles with each further one."""


def retrying(transaction: Transaction, seconds_max: float, stopping: threading.Event) -> tenacity.Retrying:
    """Return what carries out transactions until they succeed, fail for good, or the flusher is to end.

    Args:
        transaction: tells whether it was being committed, so that nobody knows whether it was.
        seconds_max: the longest pause between two attempts.
        stopping: ends the pauses; then what has failed last is raised although it would pass.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda error: classify(error, committing=transaction.committing) in PASSING,
        ),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_SECONDS_MAX, max=seconds_max),
        stop=tenacity.stop_when_event_set(stopping),
        sleep=tenacity.sleep_using_event(stopping),
        before_sleep=_tell,
        reraise=True,
    )


def _tell(state: tenacity.RetryCallState) -> None:
    """Say now and then what fails."""
    if state.attempt_number in {1, 2, 5} or state.attempt_number % 20 == 0:
        error = state.outcome.exception() if state.outcome is not None else None
        logger.warning("flush attempt %d: %s; trying again", state.attempt_number, describe(error) if error else "?")
