"""Gaps are counted exactly and histories are never confused."""

import pytest

from writebehind.engine.core.contiguity import Step, backlog, begin, parse_lineage, step
from writebehind.engine.core.positions import ORIGIN, EntryID


def at(text: str) -> EntryID:
    """Read a position."""
    return EntryID.parse(text)


def test_the_next_entry_loses_nothing() -> None:
    """Sequences that follow each other leave no gap."""
    assert step(at("5-3"), at("5-4"), {5: None}) == Step()


def test_a_gap_is_counted_exactly() -> None:
    """Sequences that are missing are lost, one by one."""
    assert step(at("5-3"), at("5-9"), {5: None}).lost == 5


def test_an_entry_that_does_not_follow_is_refused() -> None:
    """The same or an earlier entry is no step."""
    with pytest.raises(ValueError, match="does not follow"):
        step(at("5-3"), at("5-3"), {5: None})


@pytest.mark.parametrize(
    ("base", "lost", "ahead"),
    [("5-3", 0, 0), ("5-7", 4, 0), ("5-1", 0, 2)],
    ids=["meets", "log had more", "Redis was rolled back"],
)
def test_a_new_epoch_says_where_the_old_one_ended(base: str, lost: int, ahead: int) -> None:
    """The lineage tells what is missing, or what only SQL has."""
    assert step(at("5-3"), at("8-0"), {5: None, 8: at(base)}) == Step(lost=lost, ahead=ahead, base=at(base))


def test_a_whole_epoch_can_be_missing() -> None:
    """Entries of an epoch in between, and of the beginning of the new one, count as lost."""
    assert step(at("5-3"), at("8-2"), {5: None, 6: at("5-4"), 8: at("6-9")}).lost == 2 + 10 + 1


def test_what_is_delivered_again_does_not_follow() -> None:
    """In one history IDs only grow; a group that was rolled back may deliver an earlier epoch again."""
    with pytest.raises(ValueError, match="does not follow"):
        step(at("9-3"), at("7-0"), {7: None, 9: at("7-4")})


def test_a_log_without_its_past_is_not_known_to_be_whole() -> None:
    """Where the lineage does not lead back to the position, the count is a lower bound."""
    assert step(at("5-3"), at("8-2"), {8: None}) == Step(lost=2, known=False)
    assert step(at("5-3"), at("8-2"), {}) == Step(lost=2, known=False)


def test_the_first_epoch_begins_at_the_origin() -> None:
    """A log from which nothing was ever applied loses nothing at its first entry."""
    assert step(ORIGIN, at("8-0"), {8: None}) == Step()
    assert step(ORIGIN, at("8-4"), {8: None}).lost == 4


def test_reading_begins_at_the_offset() -> None:
    """An offset of this history is where reading begins."""
    assert begin(at("8-5"), {8: at("5-3")}, {5: None, 8: at("5-3")}) == at("8-5")


def test_reading_begins_where_the_histories_parted() -> None:
    """An epoch that this log never had is passed over for the latest one that it had, whatever the numbers."""
    earlier = {8: at("5-3"), 9: at("8-5")}
    assert begin(at("9-7"), earlier, {5: None, 7: at("5-2")}) == at("5-3")
    assert begin(at("9-7"), earlier, {4: None}) == ORIGIN
    assert begin(ORIGIN, {}, {4: None}) == ORIGIN


def test_the_backlog_is_counted_over_epochs() -> None:
    """Entries above the position count through all epochs up to the end."""
    lineage = {5: None, 6: at("5-4"), 8: at("6-9")}
    assert backlog(at("5-3"), at("8-1"), lineage) == 2 + 10 + 1
    assert backlog(at("8-1"), at("8-1"), lineage) == 0
    assert backlog(ORIGIN, None, {}) == 0
    assert backlog(ORIGIN, at("5-4"), lineage) == 5


def test_the_lineage_is_read_from_the_meta_hash() -> None:
    """Other fields are passed over, an empty beginning is None."""
    meta = {b"epoch": b"8", b"lineage:5": b"0-0@1", b"lineage:8": b"5-3@2"}
    assert parse_lineage(meta) == {5: None, 8: at("5-3")}


def test_an_epoch_that_never_was_is_not_in_the_lineage() -> None:
    """Its beginning came back after it was lost, and its number is above that of the one begun in its place."""
    lost = {b"lineage:5": b"0-0@1", b"lineage:7": b"5-2@2", b"lineage:8": b"5-2@2"}
    assert parse_lineage({**lost, b"epoch": b"7"}) == {5: None, 7: at("5-2")}
    assert parse_lineage({**lost, b"epoch": b"9", b"lineage:9": b"7-4@3"}) == {5: None, 7: at("5-2"), 9: at("7-4")}


def test_an_epoch_without_entries_is_in_the_lineage() -> None:
    """The one after it begins where it began."""
    meta = {b"epoch": b"9", b"lineage:5": b"0-0@1", b"lineage:7": b"5-2@2", b"lineage:9": b"5-2@3"}
    assert parse_lineage(meta) == {5: None, 7: at("5-2"), 9: at("5-2")}


def test_what_was_before_a_deleted_log_is_in_the_lineage() -> None:
    """The epoch that was begun on an empty log does not undo the earlier ones."""
    meta = {b"epoch": b"9", b"lineage:5": b"0-0@1", b"lineage:7": b"5-2@2", b"lineage:9": b"0-0@3"}
    assert parse_lineage(meta) == {5: None, 7: at("5-2"), 9: None}


def test_an_epoch_of_which_redis_kept_only_the_beginning() -> None:
    """SQL is ahead by what it applied of that epoch; nothing is missing."""
    lineage = {5: None, 7: at("5-9"), 9: at("5-9")}
    assert step(at("7-1"), at("9-0"), lineage) == Step(ahead=2, base=at("5-9"))
    assert step(at("7-1"), at("9-3"), lineage) == Step(lost=3, ahead=2, base=at("5-9"))
    assert backlog(at("7-1"), at("5-9"), lineage) == 0
    assert backlog(at("7-1"), at("9-3"), lineage) == 4
