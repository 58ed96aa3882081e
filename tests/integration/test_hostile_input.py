"""Entries and keys that no writer of this product makes: a halt that says what is wrong, and nothing in SQL."""

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
import pytest
import redis
import sqlalchemy as sa

from running import flushing
from writebehind.engine import (
    ConfigurationError,
    Durability,
    EngineSettings,
    RedisUnavailable,
    ValidationError,
    WriteBehind,
)
from writebehind.engine.adapters.control_tables import control, partitions
from writebehind.engine.config import FIELDS_MAX, MEMBERS_MAX, PAYLOAD_BYTES_MAX, UnknownColumns
from writebehind.engine.core.payload import Op, encode, encode_group
from writebehind.engine.errors import LogDamaged
from writebehind.flushers import Flusher, FlusherSettings, drain, initialise, status
from writebehind.flushers.cli import main
from writebehind.recovery import Verdict, dead_letters, verify

QUICK = FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, halt_retry_seconds=0.2)
DEADLINE_SECONDS = 10.0
HALT_SECONDS = 0.7

metadata = sa.MetaData()
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(60)),
    sa.Column("document", sa.JSON),
)
audit = sa.Table("audit", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("what", sa.String(20)))


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flushers look again soon when there is nothing to do."""
    monkeypatch.setattr("writebehind.flushers.flusher.IDLE_BLOCK_MS", 10)
    monkeypatch.setattr("writebehind.flushers.draining.LOOK_SECONDS", 0.01)


class Shop:
    """An application whose stream somebody else writes to."""

    def __init__(self, redis_url: str, database: str, namespace: str) -> None:
        # SQL has more tables than are declared.
        self.app = WriteBehind(
            redis=redis_url, database=database, tables=[accounts], namespace=namespace, partitions=1,
            settings=EngineSettings(redis_timeout_seconds=2, write_timeout_seconds=1, read_timeout_seconds=1),
        )  # fmt: skip
        initialise(self.app, create_tables=True)
        audit.create(self.app.database)
        self.app.put(accounts, {"id": 1, "owner": "Ada", "document": {"a": 1}})
        self.drain()

    def drain(self) -> None:
        """Flush everything."""
        assert drain(self.app, DEADLINE_SECONDS, QUICK).backlog == 0

    def forge(self, *fields: bytes | str) -> str:
        """Append an entry with these fields; return its ID."""
        with self.app.links.link() as link:
            epoch = link.command("HGET", self.app.keys.metas[0], "epoch").decode()
            entry_id: bytes = link.command("XADD", self.app.keys.logs[0], f"{epoch}-*", *fields)
        return entry_id.decode()

    def command(self, *arguments: Any) -> Any:
        """Send one command."""
        with self.app.links.link() as link:
            return link.command(*arguments)

    def state(self) -> tuple[Any, ...]:
        """Return all that SQL has, but for the engine's own tables."""
        inspector = sa.inspect(self.app.database)
        own = {table.name for table in control.sorted_tables}
        names = sorted(set(inspector.get_table_names()) - own)
        columns = [[column["name"] for column in inspector.get_columns(name)] for name in names]
        with self.app.database.connect() as connection:
            rows = [connection.execute(sa.select(table).order_by(table.c.id)).all() for table in (accounts, audit)]
        return names, columns, rows

    def halts(self) -> str:
        """Flush until it halts; return what status says."""
        flusher = Flusher(self.app, QUICK, member=False)
        deadline = time.monotonic() + DEADLINE_SECONDS
        flusher.run(
            until=lambda: any(each.halted for each in flusher.holdings.cursors.values()) or time.monotonic() > deadline
        )
        found = status(self.app)
        (halted,) = found.halted
        assert found.backlog > 0
        json.dumps(found.as_json())
        return str(halted.halted)


@pytest.fixture
def shop(redis_url: str, database_url: str, namespace: str) -> Iterator[Shop]:
    """A shop on each database."""
    made = Shop(redis_url, database_url, namespace)
    yield made
    made.app.close()


@pytest.fixture
def small(redis_url: str, sqlite_url: str, namespace: str) -> Iterator[Shop]:
    """A shop where the database does not matter."""
    made = Shop(redis_url, sqlite_url, namespace)
    yield made
    made.app.close()


DROPS = (
    'x"; DROP TABLE accounts; --',
    "x`; DROP TABLE accounts; --",
    "x'); DROP TABLE accounts; --",
    "accounts; DELETE FROM accounts",
    'accounts" WHERE 1=1; --',
    "audit",
    "accounts\0",
    "ACCOUNTS",
    "",
    "x" * 5000,
)


@pytest.mark.parametrize("table", DROPS, ids=range(len(DROPS)))
def test_unknown_tables(small: Shop, table: str) -> None:
    """A table that is not declared halts the partition by name, also where SQL has it, however it is spelt."""
    before = small.state()
    entry_id = small.forge("m", "0" * 22, "p", encode(Op.PUT, table, "1", {"id": 1, "what": "forged"}))
    said = small.halts()
    assert said.startswith(f"entry {entry_id}: ")
    assert "is not declared here" in said or len(table) > 200
    assert len(said) < 500
    assert small.state() == before


COLUMNS = (
    "owner\" = 'x'; DROP TABLE accounts; --",
    "owner`; DROP TABLE accounts; --",
    "owner) VALUES (1); DROP TABLE accounts; --",
    "nosuch",
    "\x1b[2J\r\nowner\u202e",
    "OWNER",
    "",
)


CASES = [(Op.PUT, column) for column in COLUMNS] + [(op, COLUMNS[0]) for op in Op if Op.PUT < op <= Op.DELETE]


@pytest.mark.parametrize(("op", "column"), CASES, ids=range(len(CASES)))
def test_unknown_columns(shop: Shop, op: Op, column: str) -> None:
    """A column that is not declared changes nothing, however it is spelt: the partition halts at the entry."""
    before = shop.state()
    key = {"id": 2} if op in {Op.PUT, Op.INSERT} else {"id": 1}
    entry_id = shop.forge("m", "0" * 22, "p", encode(op, "accounts", str(key["id"]), key | {column: 1}))
    if op is Op.DELETE:
        # Only the key counts there.
        shop.drain()
        assert shop.state()[:2] == before[:2]
        return
    said = shop.halts()
    assert said.startswith(f"entry {entry_id}: ConfigurationError: ")
    assert "this flusher's declaration does not have" in said
    assert said.isprintable()
    assert shop.state() == before


def payload(*elements: Any) -> bytes:
    """Return elements as one msgpack array."""
    return msgspec.msgpack.encode(elements)


UNREADABLE: dict[str, tuple[bytes | str, ...]] = {
    "no payload": ("m", "0" * 22),
    "other fields": ("a", "b", "c", "d"),
    "garbage": ("m", "0" * 22, "p", b"\xc1\x00garbage"),
    "cut": ("m", "0" * 22, "p", encode(Op.PUT, "accounts", "1", {"id": 1, "owner": "abcdef"})[:-3]),
    "version 2": ("m", "0" * 22, "p", payload(2, 1, "accounts", "1", {"id": 1})),
    "operation 99": ("m", "0" * 22, "p", payload(1, 99, "accounts", "1", {"id": 1})),
    "nested": ("m", "0" * 22, "p", payload(1, 1, "accounts", "1", {"id": 1, "owner": [["a"]]})),
    "deep": ("m", "0" * 22, "p", b"\x95\x01\x01\xa8accounts\xa11\x81\xa5owner" + b"\x91" * 100_000),
    "giant": ("m", "0" * 22, "p", b"\x95\x01\x01" + b"a" * (PAYLOAD_BYTES_MAX + 1)),
    "many fields": ("m", "0" * 22, "p", encode(Op.PUT, "accounts", "1", {f"c{n}": n for n in range(FIELDS_MAX + 1)})),
    "billions announced": ("m", "0" * 22, "p", b"\x95\x01\x01\xa8accounts\xa11\xdf\xff\xff\xff\xff"),
    "bad UTF-8": ("m", "0" * 22, "p", b"\x95\x01\x01\xa8accounts\xa11\x81\xa5owner\xa2\xed\xa0"),
    "a decimal of a billion digits": (
        "m", "0" * 22, "p", payload(1, 1, "accounts", "1", {"id": msgspec.msgpack.Ext(5, b"1E+999999999")}),
    ),
    "no mutation ID": ("m", b"\xff\xfe", "p", payload(1, 99, "accounts", "1", {"id": 1})),
    "no key": ("m", "0" * 22, "p", encode(Op.PATCH, "accounts", "1", {"owner": "x"})),
    "a bad original": ("m", "0" * 22, "p", encode(Op.PATCH, "accounts", "1", {"id": 1}), "o", "nonsense"),
}  # fmt: skip


PERHAPS_NEWER = {"version 2", "operation 99", "no mutation ID", "no key"}
"""What a newer release may have written, or what contradicts itself: nothing may overtake it."""


@pytest.mark.parametrize("what", sorted(UNREADABLE.keys() - PERHAPS_NEWER))
def test_damaged_entries(small: Shop, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged entry is set aside with the reason; nothing of it is in SQL, and what is behind it is."""
    before = small.state()
    entry_id = small.forge(*UNREADABLE[what])
    small.app.put(accounts, {"id": 3, "owner": "behind"})
    small.drain()
    (said,) = [record.getMessage() for record in caplog.records if "DEAD LETTER" in record.getMessage()]
    assert entry_id in said
    assert len(said) < 600
    assert said.isprintable()
    names, columns, (rows, _) = small.state()
    assert (names, columns) == before[:2]
    assert rows[0] == before[2][0][0]
    assert [row.id for row in rows] == [1, 3]


@pytest.mark.parametrize("what", sorted(PERHAPS_NEWER))
def test_entries_of_another_release(small: Shop, what: str) -> None:
    """The partition halts at the entry and says why; nothing of it, and nothing behind it, is in SQL."""
    before = small.state()
    entry_id = small.forge(*UNREADABLE[what])
    small.app.put(accounts, {"id": 3, "owner": "behind"})
    said = small.halts()
    assert said.startswith(f"entry {entry_id}: ")
    assert len(said) > len(entry_id) + 20
    assert small.state() == before
    assert verify(small.app).logs[0].backlog == 2
    # The operator takes it out of the log, and flushing goes on.
    small.command("XDEL", small.app.keys.logs[0], entry_id)
    small.drain()
    assert [row.id for row in small.state()[2][0]] == [1, 3]


def test_an_entry_is_taken_out_under_a_running_flusher(small: Shop) -> None:
    """The partition that it has halted flushes again, also where nothing follows."""
    entry_id = small.forge(*UNREADABLE["version 2"])
    with flushing(small.app, QUICK):
        until(lambda: len(status(small.app).halted) == 1)
        small.command("XDEL", small.app.keys.logs[0], entry_id)
        until(lambda: status(small.app).halted == [] and status(small.app).backlog == 0)
    assert status(small.app).lost_entries == 1


typed = sa.Table(
    "typed",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("blob", sa.LargeBinary),
    sa.Column("number", sa.Integer),
    sa.Column("active", sa.Boolean),
    sa.Column("seen", sa.DateTime(timezone=True)),
    sa.Column("pause", sa.Interval),
)


@pytest.mark.parametrize("others", [0, 150])
def test_values_of_another_type(redis_url: str, database_url: str, namespace: str, others: int) -> None:
    """Alone or among many, they become dead letters that name table, column and kinds; everything else flows."""
    forged: dict[str, tuple[Any, str]] = {
        "blob": (5, "is declared as bytes, and an entry holds integer for it"),
        "number": ("abc", "is declared as integer, and an entry holds text for it"),
        "active": (5, "is declared as boolean, and an entry holds integer for it"),
        "seen": (datetime(2020, 1, 1), "is declared as datetime with time zone, and an entry holds datetime without"),  # noqa: DTZ001
        "pause": (1.5, "is declared as interval, and an entry holds float for it"),
    }
    settings: dict[str, Any] = {"redis": redis_url, "database": database_url, "namespace": namespace, "partitions": 1}
    with WriteBehind(**settings, tables=[typed]) as app:
        initialise(app, create_tables=True)
        app.put(typed, {"id": 0})
        with app.links.link() as link:
            epoch = link.command("HGET", app.keys.metas[0], "epoch").decode()
            rows = [{"id": 1000 + number} for number in range(others)]
            rows += [{"id": number, name: value} for number, (name, (value, _)) in enumerate(forged.items(), 1)]
            for row in rows:
                whole = dict.fromkeys(typed.columns.keys()) | row
                payload = encode(Op.PUT, "typed", str(row["id"]), whole)
                link.command("XADD", app.keys.logs[0], f"{epoch}-*", "m", "0" * 22, "p", payload)
        app.put(typed, {"id": 2000, "blob": b"behind"})
        assert drain(app, DEADLINE_SECONDS, QUICK).backlog == 0
        letters = {letter.changes[0].key_text: letter for letter in dead_letters(app)}
        for number, (name, (_, said)) in enumerate(forged.items(), 1):
            assert letters[str(number)].failure == "poison"
            assert f"column {name} of table typed {said}" in letters[str(number)].error
        assert len(letters) == len(forged)
        with app.database.connect() as connection:
            kept = set(connection.execute(sa.select(typed.c.id)).scalars())
        assert kept == {0, 2000, *range(1000, 1000 + others)}


def test_a_group_with_one_unknown_member(shop: Shop) -> None:
    """Of a group nothing is applied."""
    before = shop.state()
    members: list[tuple[int, str, str, dict[str, Any]]] = [
        (Op.PUT, "accounts", "2", {"id": 2, "owner": "x", "document": None}),
        (Op.DELETE, "audit", "1", {"id": 1}),
    ]
    entry_id = shop.forge("m", "0" * 22, "p", encode_group(members))
    assert shop.halts().startswith(f"entry {entry_id}: ")
    assert shop.state() == before


def test_values_that_look_like_sql(shop: Shop) -> None:
    """They are values."""
    texts = [each[:60].replace("\0", "") for each in DROPS]
    with shop.app.batch() as batch:
        for number, text in enumerate(texts):
            batch.put(accounts, {"id": 100 + number, "owner": text, "document": {text: [text]}})
    shop.drain()
    for number, text in enumerate(texts):
        with shop.app.links.link() as link:
            link.command("DEL", shop.app.keys.record(0, "accounts", str(100 + number)))
        expected = {"id": 100 + number, "owner": text, "document": {text: [text]}}
        assert shop.app.get(accounts, 100 + number) == expected


def test_nothing_forged_drives_a_terminal(
    small: Shop,
    redis_url: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys, tables and names that hold terminal sequences are printed escaped by every command that shows them."""
    evil = "\x1b]0;owned\x07\u202e\r"
    small.forge("m", "0" * 22, "p", encode(Op.PUT, "accounts", evil, {"id": 2, "owner": 5}))
    small.forge("m", evil, "p", encode_group([(Op.PUT, "accounts", evil + "2", {"id": 2, evil: 5})]))
    small.forge("m", "0" * 22, "p", encode(Op.PATCH, "accounts", evil, {"id": 2, "owner": "behind"}))
    small.command("SET", f"{small.app.keys.stems[0]}accounts:{evil}:", "foreign")
    small.app.tables["accounts"] = replace(small.app.tables["accounts"], unknown_columns=UnknownColumns.DEAD_LETTER)
    small.drain()
    small.forge("m", "0" * 22, "p", encode(Op.PUT, evil, "1", {"id": 1}))
    assert drain(small.app, HALT_SECONDS, QUICK).halted
    (first, group, _) = [str(letter.letter_id) for letter in dead_letters(small.app)]
    url = small.app.database.url.render_as_string(hide_password=False)
    target = ["--redis", redis_url, "--database", url, "--table", "accounts", "--partitions", "1"]
    target += ["--namespace", small.app.keys.namespace]
    for words in (
        ["dead-letters", "list"],
        ["dead-letters", "show", first],
        ["dead-letters", "show", group, "--values"],
        ["dead-letters", "discard", "--all"],
        ["dead-letters", "replay", first, "--wait", "0"],
        ["dead-letters", "list", "--key", evil],
        ["dead-letters", "show", evil],
        ["status"],
        ["drain", "--timeout", "5"],
        ["verify"],
        ["recover"],
        ["doctor"],
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
        with pytest.raises(SystemExit):
            main([*target, *words])
        said = "".join(capsys.readouterr())
        assert all(line.isprintable() for line in said.split("\n")), words
        assert "owned" in said, words
    assert all(record.getMessage().isprintable() for record in caplog.records)


# Foreign keys in the namespace


def test_a_record_of_another_type(small: Shop) -> None:
    """Where a record's hash should be there is a string: writes and reads are refused with the reason."""
    name = small.app.keys.record(0, "accounts", "7")
    small.command("SET", name, "foreign")
    with pytest.raises(ConfigurationError, match="not the engine's"):
        small.app.put(accounts, {"id": 7, "owner": "x"})
    with pytest.raises(ConfigurationError, match="not as the engine writes it"):
        small.app.get(accounts, 7)
    assert small.app.get(accounts, 1) is not None
    assert verify(small.app).counts[Verdict.UNREADABLE] == 1
    small.app.put(accounts, {"id": 8, "owner": "x"})
    small.drain()
    assert small.command("GET", name) == b"foreign"


def test_a_record_that_became_another_type(small: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Between its write and its flush: the row is in SQL, the key is left alone and named, others are settled."""
    for key in range(2, 5):
        small.app.put(accounts, {"id": key, "owner": "x"})
    name, neighbour = (small.app.keys.record(0, "accounts", key) for key in ("3", "4"))
    small.command("DEL", name)
    small.command("SET", name, "foreign")
    small.drain()
    assert small.command("GET", name) == b"foreign"
    assert small.command("PTTL", name) == -1
    assert small.command("PTTL", neighbour) > 0
    assert f"the key {name} is not a record" in caplog.text
    small.command("DEL", name)
    assert small.app.get(accounts, 3) == {"id": 3, "owner": "x", "document": None}


@pytest.mark.parametrize("origin", ["99999999999999999999999-1", "5-99999999999999999999999999", "-5--7", "x"])
def test_a_forged_origin(shop: Shop, origin: str) -> None:
    """An entry that says it was written again, of a place that there cannot be: a dead letter, and others go on."""
    shop.forge("m", "0" * 22, "p", encode(Op.PUT, "accounts", "2", {"id": 2, "owner": "x"}), "o", origin)
    shop.app.put(accounts, {"id": 3, "owner": "x"})
    shop.drain()
    found = status(shop.app)
    assert (found.halted, str(found.dead_letters[""])) == ([], "1 refused, 0 waiting")
    assert [row.id for row in shop.state()[2][0]] == [1, 3]


@pytest.mark.parametrize(
    ("table", "key"), [("accounts", "2\0"), ("accounts", "Łódź"), ("acc\0unts", "2"), ("t" * 70_000, "2")]
)
def test_a_forged_doubt(shop: Shop, table: str, key: str) -> None:
    """An entry in doubt is passed over and told, whatever it calls its record, and others go on."""
    epoch = shop.app.put(accounts, {"id": 3, "owner": "x"}).entry_id.epoch
    shop.forge("m", "0" * 22, "p", encode(Op.PUT, table, key, {"id": 2, "owner": "x"}), "o", f"{epoch}-0?")
    shop.app.put(accounts, {"id": 4, "owner": "x"})
    shop.drain()
    found = status(shop.app)
    assert (found.halted, found.lost_entries, [loss.in_doubt for loss in found.losses]) == ([], 1, [1])
    assert [row.id for row in shop.state()[2][0]] == [1, 3, 4]


@pytest.mark.parametrize("which", ["logs", "metas"])
def test_a_log_of_another_type(small: Shop, which: str) -> None:
    """Where a partition's log or meta hash should be there is a string: everybody says so, and nothing is written."""
    name = getattr(small.app.keys, which)[0]
    small.command("RENAME", name, "wb:{elsewhere}:kept")
    small.command("SET", name, "foreign")
    with pytest.raises((ConfigurationError, RedisUnavailable), match=r"not the engine's|WRONGTYPE"):
        small.app.put(accounts, {"id": 7, "owner": "x"})
    with pytest.raises(ConfigurationError, match=r"WRONGTYPE|not as the engine"):
        drain(small.app, HALT_SECONDS, QUICK)
    assert small.command("GET", name) == b"foreign"
    small.command("RENAME", "wb:{elsewhere}:kept", name)
    small.app.put(accounts, {"id": 7, "owner": "x"})
    small.drain()


@pytest.mark.parametrize("which", ["logs", "metas"])
def test_a_log_of_another_type_may_be_deleted(small: Shop, which: str) -> None:
    """As the error says: flushers and writers go on by themselves, and what SQL has it keeps."""
    name = getattr(small.app.keys, which)[0]
    small.command("SET", name, "foreign")
    with pytest.raises(LogDamaged, match=f"overwritten {re.escape(name)}: .* you delete it, too; but what SQL had not"):
        drain(small.app, HALT_SECONDS, QUICK)
    small.command("DEL", name)
    small.app.put(accounts, {"id": 7, "owner": "x"})
    small.drain()
    assert [row.id for row in small.state()[2][0]] == [1, 7]
    assert status(small.app).lost_entries == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lineage:7", "9-1@0"),
        ("lineage:x", "1-1@0"),
        ("lineage:7", "nonsense"),
        ("watermark", "nonsense"),
        ("floor", "x"),
    ],
)
def test_a_damaged_meta_hash(small: Shop, field: str, value: str) -> None:
    """Flushers and readers say that it is damaged; none of them goes round in a circle."""
    meta = small.app.keys.metas[0]
    before = small.command("HGET", meta, field)
    small.command("HSET", meta, field, value)
    with pytest.raises(ConfigurationError, match="does not hold what the engine writes"):
        drain(small.app, HALT_SECONDS, QUICK)
    if field == "watermark":
        # A read that asks how far SQL is: the record is partial.
        small.app.patch(accounts, 9, {"owner": "x"})
    if field in {"watermark", "floor"}:
        with pytest.raises(ConfigurationError, match="not as the engine writes it"):
            small.app.get(accounts, 9)
    if before is None:
        small.command("HDEL", meta, field)
    else:
        small.command("HSET", meta, field, before)
    small.app.put(accounts, {"id": 7, "owner": "x"})
    small.drain()


@pytest.mark.parametrize("what", ["log", "meta", "lineage"])
def test_a_damaged_log_halts_its_partition_only(redis_url: str, sqlite_url: str, namespace: str, what: str) -> None:
    """A flusher says which partition and why, goes on with the others, and tries again until it is mended."""
    app = WriteBehind(redis=redis_url, database=sqlite_url, tables=[accounts], namespace=namespace, partitions=2)
    with app, redis.Redis.from_url(redis_url) as client:
        initialise(app, create_tables=True)
        of: dict[int, int] = {}
        for number in range(20):
            of[app.put(accounts, {"id": number}).partition] = number
        name = app.keys.logs[0] if what == "log" else app.keys.metas[0]
        kept = f"kept:{namespace}"

        def persists(partition: int, owner: str) -> None:
            app.patch(accounts, of[partition], {"owner": owner}).wait(Durability.PERSISTED, DEADLINE_SECONDS)

        def halted() -> list[str | None]:
            with app.database.connect() as connection:
                return list(
                    connection.execute(sa.select(partitions.c.halted).order_by(partitions.c.partition)).scalars()
                )

        with flushing(app, QUICK):
            persists(0, "before")
            persists(1, "before")
            client.copy(name, kept)
            if what == "lineage":
                client.hset(name, "lineage:7", "9-1@0")
            else:
                client.set(name, "foreign")
            until(lambda: halted()[0] is not None)
            persists(1, "meanwhile")
        with flushing(app, QUICK):
            until(lambda: halted()[0] is not None)
            persists(1, "with another flusher")
            reason, other = halted()
            assert other is None
            assert reason is not None
            assert reason.startswith("its log: LogDamaged: ")
            assert ("does not hold what the engine writes" if what == "lineage" else "WRONGTYPE") in reason
            client.rename(kept, name)
            persists(0, "mended")
            until(lambda: halted() == [None, None])
        assert [row.lost_entries for row in status(app).partitions] == [0, 0]


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it does not become so"
        time.sleep(0.01)


def test_foreign_keys_are_reported_and_left_alone(small: Shop) -> None:
    """Keys that are no records are named by verify; nothing else takes notice."""
    stem = small.app.keys.stems[0]
    for name in (
        f"{stem}nosuch:1",
        f"{stem}accounts:x",
        f"{stem}accounts:1:2",
        f"wb:{{{small.app.keys.namespace}:77}}:a:1",
    ):
        small.command("SET", name, "foreign")
    small.command("SET", stem.encode() + b"accounts:\xff", "foreign")
    assert verify(small.app).counts[Verdict.FOREIGN] == 5
    small.app.put(accounts, {"id": 9, "owner": "x"})
    small.drain()
    assert verify(small.app).counts[Verdict.FOREIGN] == 5


# What a writer refuses


def test_giant_values_are_refused_before_anything_is_written(small: Shop) -> None:
    """The error names the size and the limit."""
    limit = small.app.settings.payload_bytes_max
    before = small.command("XLEN", small.app.keys.logs[0])
    with pytest.raises(ValidationError, match=f"takes .* bytes and {limit} are allowed"):
        small.app.put(accounts, {"id": 1, "owner": None, "document": ["x" * limit]})
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ValidationError, match="at most 100 nested levels"):
        small.app.put(accounts, {"id": 1, "owner": None, "document": deep})
    wide: list[Any] = []
    for _ in range(8):
        wide = [wide] * 20
    with pytest.raises(ValidationError, match="JSON of at most 1000000 items"):
        small.app.put(accounts, {"id": 1, "owner": None, "document": wide})
    with pytest.raises(ValidationError, match="'c0', 'c1', 'c2', 'c3', 'c4' and 999995 more") as caught:
        small.app.put(accounts, {"id": 1} | {f"c{number}": 1 for number in range(1_000_000)})
    assert len(str(caught.value)) < 300
    assert small.command("XLEN", small.app.keys.logs[0]) == before


def test_as_many_columns_as_are_possible(redis_url: str, sqlite_url: str, namespace: str) -> None:
    """A table of 2,000 columns works, through the script and through SQL; one more is refused at declaration."""

    def table(columns: int) -> sa.Table:
        names = [sa.Column(f"c{number}", sa.Integer) for number in range(columns - 1)]
        return sa.Table(
            "wide", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), *names
        )

    wide = table(FIELDS_MAX)
    settings: dict[str, Any] = {"redis": redis_url, "database": sqlite_url, "namespace": namespace, "partitions": 1}
    with WriteBehind(**settings, tables=[wide]) as app:
        initialise(app, create_tables=True)
        record = {"id": 1} | {f"c{number}": number for number in range(FIELDS_MAX - 1)}
        app.put(wide, record)
        app.patch(wide, 1, {name: value for name, value in record.items() if name != "id"})
        app.increment(wide, 1, {f"c{number}": 1 for number in range(FIELDS_MAX - 1)})
        expected = {name: value + (name != "id") for name, value in record.items()}
        assert app.get(wide, 1) == expected
        assert drain(app, DEADLINE_SECONDS, QUICK).backlog == 0
        with app.database.connect() as connection:
            assert dict(connection.execute(sa.select(wide)).mappings().one()) == expected
    with pytest.raises(ConfigurationError, match="2001 columns; 2000 are possible"):
        WriteBehind(**settings, tables=[table(FIELDS_MAX + 1)])


def test_the_largest_group(redis_url: str, sqlite_url: str, namespace: str) -> None:
    """Ten thousand writes in one group are one entry, which Redis and a flusher cope with; one more is refused."""
    settings: dict[str, Any] = {"redis": redis_url, "database": sqlite_url, "namespace": namespace, "partitions": 1}
    with WriteBehind(
        **settings, tables=[accounts], settings=EngineSettings(payload_bytes_max=PAYLOAD_BYTES_MAX)
    ) as app:
        initialise(app, create_tables=True)
        app.put(accounts, {"id": 1})
        with app.atomic(accounts, 1) as group:
            for number in range(MEMBERS_MAX):
                group.patch(accounts, 1, {"owner": str(number)})
        assert drain(app, DEADLINE_SECONDS, QUICK).backlog == 0
        assert app.get(accounts, 1) == {"id": 1, "owner": str(MEMBERS_MAX - 1), "document": None}
        entries = [app.composer.delete(app.plan_of(accounts), 1)] * (MEMBERS_MAX + 1)
        with pytest.raises(ValidationError, match="an atomic group of 10001 writes; 10000 are allowed"):
            app.composer.group(entries, 0)
