"""What a process knows to have put into Redis."""

from writebehind.engine.adapters.kept_names import KeptNames


def test_what_is_gone_before_its_time() -> None:
    """It is told once, and not after its end, nor where this process has removed it; the oldest are forgotten."""
    kept = KeptNames(names_max=2)
    for name in "abc":
        kept.note(name, 10.0)
    assert [kept.gone(name, 9.0) for name in "abcc"] == [False, True, True, False]
    kept.note("d", 10.0)
    assert not kept.gone("d", 10.0)
    kept.note("e", 10.0)
    kept.forget("e")
    assert not kept.gone("e", 9.0)
    for end in (10.0, 20.0):
        kept.note("f", end)
    assert kept.gone("f", 15.0)
