"""scratch review"""
import contextlib, threading, time, logging, os, signal
from urllib.parse import urlsplit
import pytest, redis
import sqlalchemy as sa
import servers
from test_zz_review import World, world, accounts, events, SETTINGS, DEADLINE_SECONDS
from test_rollbacks import flushing
from writebehind.drills.proxy import Proxy, Mishap
from writebehind.engine import Durability, EngineSettings, WriteBehind
from writebehind.engine.adapters.scripts import APPEND
from writebehind.flushers import Flusher, FlusherSettings, drain, status


@pytest.mark.parametrize("round", range(4))
def test_F_for_real(world, round):
    """Nothing patched: A idle, its watch looks each second; B deletes; a flusher runs."""
    world.app.put(accounts, {"id": 1, "owner": "old", "balance": 10})
    world.d()
    size = world.size
    with contextlib.closing(world.engine()) as other:
        other.start()
        world.app.put(accounts, {"id": 1, "owner": "A-old", "balance": 1})
        world.crash(size)
        with flushing(other):
            r = other.delete(accounts, 1, durability=Durability.PERSISTED)
            time.sleep(3)
        print(world.losses, world.rows())
        assert world.rows() == {}


def test_N_lost_reply_then_rollback(world):
    """Reply lost, the flusher commits, the primary loses the entry, the writer's retry appends it again."""
    world.app.insert(events, {"kind": "base"})
    world.d()
    size = world.size
    with Proxy(urlsplit(world.server.url).port) as proxy:
        app = WriteBehind(redis=f"redis://127.0.0.1:{proxy.port}/0", database=world.database, tables=[accounts, events],
            namespace=world.namespace, partitions=1, settings=EngineSettings(redis_timeout_seconds=1, write_timeout_seconds=20))
        app.insert(events, {"kind": "warm"})
        world.d()
        size = world.size
        with flushing(world.app):
            proxy.inject(Mishap.CUT_AFTER, APPEND.sha.encode() if isinstance(APPEND.sha, str) else APPEND.sha)
            t = threading.Thread(target=lambda: app.insert(events, {"kind": "once"}))
            t.start()
            proxy.wait_for(Mishap.CUT_AFTER)
            proxy.refuse()
            deadline = time.monotonic() + 5
            while "once" not in world.kinds() and time.monotonic() < deadline: time.sleep(.01)
            print(world.kinds())
            world.crash(size)
            proxy.accept()
            t.join()
            time.sleep(2)
        print(world.kinds())
        app.close()
        assert world.kinds().count("once") == 1


def test_O_full_redis_restarted_is_never_trimmed(own_redis, sqlite_url, namespace, monkeypatch):
    server = own_redis({"appendfsync": "always", "maxmemory": "8mb", "maxmemory-policy": "noeviction"}, binary=servers.newest_redis_binary())
    world = World(server, sqlite_url, namespace)
    app = world.engine(retained_bytes_max=0)
    try:
        n = 0
        try:
            while True:
                with app.batch() as b:
                    for _ in range(50):
                        b.insert(events, {"kind": "x" * 20}); n += 1
        except Exception as e:
            print("full", n, type(e).__name__, str(e)[:80])
        if os.environ.get("ZZ_NORESTART") != "1":
            world.server.kill(); world.server.start()
            with redis.Redis.from_url(server.url) as c:
                c.config_set("maxmemory", c.info("memory")["used_memory"] - 500_000)
        f = Flusher(world.app, FlusherSettings(linger_seconds=0, lease_ttl_seconds=1, retention_seconds=3, batch_entries_max=5000))
        t0 = time.monotonic()
        f.run(until=lambda: time.monotonic() - t0 > 15)
        with redis.Redis.from_url(server.url) as c:
            left = c.xlen(app.keys.logs[0])
            print("backlog", status(world.app).backlog, "left in log", left, "mem", c.info("memory")["used_memory_human"], "max", 8)
        assert left == 0
        app.insert(events, {"kind": "again"})
    finally:
        app.close(); world.app.close()


def test_K_marker_stays(world):
    world.app.put(accounts, {"id": 1, "owner": "a", "balance": 0})
    world.d()
    size = world.size
    world.app.increment(accounts, 1, {"balance": 1})
    world.app.insert(accounts, {"id": 7, "owner": "ins", "balance": 0})
    world.app.patch(accounts, 1, {"owner": "b"})
    world.d()
    world.crash(size)
    world.app.insert(events, {"kind": "w"})
    world.d()
    print(world.losses, world.rows())
    with redis.Redis.from_url(world.server.url) as c:
        print({k: (c.hgetall(k), c.ttl(k)) for k in c.keys("*accounts*")})
        keys = c.keys("*accounts*")
    from writebehind.recovery import verify
    assert keys == []


def test_R_read_own_write_after_rollback(world, monkeypatch):
    world.app.put(accounts, {"id": 1, "owner": "a", "balance": 0})
    world.d()
    size = world.size
    world.quiet(monkeypatch, world.app)   # the watch looks once a second; here: not yet
    world.app.put(accounts, {"id": 1, "owner": "a", "balance": 100})
    world.crash(size)
    got = world.app.get(accounts, 1)["balance"]
    world.app.put(accounts, {"id": 1, "owner": "a", "balance": got + 5})
    world.d()
    print(got, world.losses)
    assert world.rows() == {1: ("a", 105)}


def test_Z_deleted_meta_doubles(world):
    for n in range(3): world.app.insert(events, {"kind": str(n)})
    for n in range(3): world.app.increment(accounts, 1, {"balance": 1})
    world.d()
    with redis.Redis.from_url(world.server.url) as c: c.delete(world.app.keys.metas[0])
    world.app.insert(events, {"kind": "z"})
    world.d()
    print(world.losses, world.rows(), world.kinds())
    for l in status(world.app).losses: print(l)
    assert world.kinds() == ["0", "1", "2", "z"]


def test_P_reconcile_is_slow(world, monkeypatch):
    world.app.put(accounts, {"id": 0, "owner": "a", "balance": 0})
    world.d()
    size = world.size
    N = int(os.environ.get('ZZ_N', '12000'))
    with contextlib.closing(world.engine()) as other:
        world.quiet(monkeypatch, world.app, other)
        for n in range(1, N + 1):
            world.app.put(accounts, {"id": n, "owner": "a", "balance": 0})
        world.crash(size)
        if os.environ.get("ZZ_CONTEND", "1") == "1":
            other.put(accounts, {"id": N, "owner": "b", "balance": 0})
        t = time.monotonic()
        world.app.put(accounts, {"id": 0, "owner": "b", "balance": 0})
        took = time.monotonic() - t
        print("took", took, world.losses)
        assert took < 6  # write_timeout_seconds is 5


def test_C_callback_reenters(world):
    world.app.put(accounts, {"id": 1, "owner": "a", "balance": 0})
    world.d()
    size = world.size
    seen = []
    def cb(loss):
        seen.append(loss)
        world.app.increment(accounts, 1, {"balance": 1000})
        with world.app.batch() as b: b.insert(events, {"kind": "cb"})
        raise RuntimeError("x")
    world.app._on_data_loss = cb
    world.app.increment(accounts, 1, {"balance": 1})
    world.crash(size)
    world.app.increment(accounts, 1, {"balance": 10})
    world.d()
    print(seen, world.rows(), world.kinds())
    assert world.rows() == {1: ("a", 1011)}


def test_C2_callback_closes(world):
    world.app.put(accounts, {"id": 1, "owner": "a", "balance": 0})
    world.d()
    size = world.size
    world.app._on_data_loss = lambda loss: (world.losses.append(loss), world.app.close())
    world.app.increment(accounts, 1, {"balance": 1})
    world.crash(size)
    deadline = time.monotonic() + 5
    while not world.losses and time.monotonic() < deadline: time.sleep(.05)
    time.sleep(.2)
    assert world.losses
