"""Which drills can be played where, and that a campaign's rounds can be played again."""

import pytest

from writebehind.drills.campaign import FAULTS, Combination, plan_round
from writebehind.drills.catalogue import DRILLS, Options, objection, plan_of
from writebehind.drills.fault import Need
from writebehind.engine import Durability
from writebehind.engine.errors import ConfigurationError

REDIS, DATABASE = "redis://:secret@127.0.0.1:1/0", "postgresql+psycopg://me:secret@127.0.0.1:1/shop"
GIVEN = Options(redis_url=REDIS, database_url=DATABASE)
COMBINATIONS = [Combination(redis, sql) for redis in ("a", "b", "c") for sql in ("postgresql", "mariadb", "sqlite")]


def test_names_are_unique_and_say_something() -> None:
    """Every drill has a fault, a promise, a database; so has every fault of a campaign a name of its own."""
    assert len(DRILLS) >= 30
    for drill in DRILLS.values():
        assert drill.faults
        assert drill.promise
        assert drill.sql
        assert all(kind in fault.sql for kind in drill.sql for fault in drill.faults)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 25


def test_what_kills_servers_is_refused_on_those_of_the_user() -> None:
    """And what does not is allowed."""
    refused = {name for name, drill in DRILLS.items() if objection(drill, GIVEN)}
    for name in ("redis-sigkill-always", "redis-full", "flushall", "script-flush", "failover", "sql-sigkill-postgresql",
                 "sql-rolled-back-postgresql", "commit-cut-after", "redis-power-loss-everysec"):  # fmt: skip
        assert name in refused
        with pytest.raises(ConfigurationError, match="needs embedded servers"):
            plan_of(DRILLS[name], GIVEN)
    assert DRILLS.keys() - refused >= {
        "flusher-sigkill", "flusher-sigkill-steps", "recovery-sigkill", "zombie", "service-sigkill", "lock-timeout",
        "redis-cut", "redis-slow", "redis-half-open", "sql-cut", "sql-slow", "sql-half-open", "poison", "schema-drift",
    }  # fmt: skip
    for name in DRILLS.keys() - refused:
        needs = plan_of(DRILLS[name], GIVEN).needs
        assert not needs & {Need.OWN_REDIS, Need.OWN_SQL, Need.REPLICA}


def test_lines_need_plain_tcp() -> None:
    """A proxy cannot stand in for a server with a certificate."""
    encrypted = Options(redis_url="rediss://127.0.0.1:1/0", database_url=DATABASE)
    assert objection(DRILLS["redis-cut"], encrypted) == Need.REDIS_LINE
    assert objection(DRILLS["zombie"], encrypted) is None


def test_a_database_that_makes_no_sense_is_refused() -> None:
    """SQLite has no server whose connections could be cut."""
    assert "makes no sense on sqlite" in str(objection(DRILLS["sql-cut"], Options(sql_kind="sqlite")))
    assert "makes no sense on sqlite" in str(objection(DRILLS["sql-cut"], Options(database_url="sqlite:///x")))


def test_only_scratch_namespaces_are_used_unasked() -> None:
    """Another name needs the flag."""
    with pytest.raises(ConfigurationError, match="not a scratch namespace"):
        plan_of(DRILLS["zombie"], Options(redis_url=REDIS, database_url=DATABASE, namespace="shop"))
    plan = plan_of(DRILLS["zombie"], Options(redis_url=REDIS, database_url=DATABASE, namespace="shop", reckless=True))
    assert (plan.namespace, plan.replace) == ("shop", True)
    plan_of(DRILLS["zombie"], Options(redis_url=REDIS, database_url=DATABASE, namespace="drill_mine"))


def test_a_short_drill_is_the_same_with_less() -> None:
    """One strike, less load; the command to replay it says so, and shows no password."""
    short = plan_of(DRILLS["zombie"], Options(short=True, seed=5, sql_kind="sqlite", redis_kind="valkey"))
    full = plan_of(DRILLS["zombie"], Options(seed=5, sql_kind="sqlite"))
    assert len(short.faults) < len(full.faults)
    assert short.load_seconds < full.load_seconds
    assert short.replay == "writebehind drill run zombie --seed 5 --short --server valkey --sql sqlite"
    assert "secret" not in plan_of(DRILLS["zombie"], GIVEN).replay


def test_every_step_is_in_the_full_drill() -> None:
    """Before and after each of the five effects of a flush."""
    names = [fault.name for fault in plan_of(DRILLS["flusher-sigkill-steps"], Options(sql_kind="sqlite")).faults]
    assert len(names) == len(set(names)) == 10


def test_fsynced_writes_where_every_write_is_fsynced() -> None:
    """Drills under ``always`` ask for the level that it gives."""
    assert DRILLS["redis-power-loss-always"].level is Durability.FSYNCED
    assert DRILLS["redis-power-loss-always"].appendfsync == "always"


def test_a_round_can_be_played_again() -> None:
    """Its seed alone decides; fewer faults are the first of more."""
    for seed in range(30):
        plan = plan_round(seed, 12, COMBINATIONS)
        again = plan_round(seed, 12, COMBINATIONS)
        shorter = plan_round(seed, 5, COMBINATIONS)
        assert [fault.name for fault in plan.faults] == [fault.name for fault in again.faults]
        assert [fault.name for fault in shorter.faults] == [fault.name for fault in plan.faults][:5]
        assert (plan.redis_kind, plan.sql_kind, plan.appendfsync) == (
            shorter.redis_kind, shorter.sql_kind, shorter.appendfsync,
        )  # fmt: skip
        assert all(plan.sql_kind in fault.sql for fault in plan.faults)
        assert all(not fault.appendfsync or plan.appendfsync in fault.appendfsync for fault in plan.faults)
        assert plan.replay == f"writebehind drill campaign --seed {seed} --rounds 1 --faults 12"


def test_a_campaign_meets_all_servers_and_all_faults() -> None:
    """Nine rounds see every combination; a hundred see every fault and policy."""
    plans = [plan_round(seed, 12, COMBINATIONS) for seed in range(100)]
    assert len({(plan.redis_kind, plan.sql_kind) for plan in plans[:9]}) == 9
    assert {fault.name for plan in plans for fault in plan.faults} == {fault.name for fault in FAULTS}
    assert {plan.appendfsync for plan in plans} == {"always", "everysec", "no"}
