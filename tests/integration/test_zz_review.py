"""scratch review"""
import contextlib, threading, time, logging
import pytest, redis
import sqlalchemy as sa
import servers
from test_retention import World as _World, accounts, events, SETTINGS, DEADLINE_SECONDS, drain_some
from writebehind.engine import Durability
from writebehind.engine.embedded import EmbeddedRedis
from writebehind.flushers import Flusher, FlusherSettings, drain, status
from writebehind.engine.adapters.links import open_epoch


class World(_World):
    def quiet(self, mp, *apps):
        for a in apps:
            a.start()
            mp.setattr(a._rewriter, "look", lambda: None)

    def d(self):
        return drain(self.app, DEADLINE_SECONDS, SETTINGS)

    def meta(self):
        with redis.Redis.from_url(self.server.url) as c:
            return c.hgetall(self.app.keys.metas[0])

    def log(self):
        with redis.Redis.from_url(self.server.url) as c:
            return c.xrange(self.app.keys.logs[0])

    def flush_once(self, seconds=1.5):
        f = Flusher(self.app, SETTINGS)
        t = time.monotonic()
        f.run(until=lambda: time.monotonic() - t > seconds)


@pytest.fixture
def world(own_redis, sqlite_url, namespace):
    server = own_redis({"appendfsync": "no"}, binary=servers.newest_redis_binary())
    made = World(server, sqlite_url, namespace)
    yield made
    made.app.close()


@pytest.mark.parametrize("since", ["delete", "patch", "insert", "increment"])
def test_F_newer_write_flushed_and_settled_then_old_one_rewritten(world, monkeypatch, since):
    """B's newer write is flushed; its marker goes; A then writes its old put again over it."""
    if since != "insert":
        world.app.put(accounts, {"id": 1, "owner": "old", "balance": 10})
    world.app.insert(events, {"kind": "x"})
    world.d()
    size = world.size
    with contextlib.closing(world.engine()) as other:
        world.quiet(monkeypatch, world.app, other)
        world.app.put(accounts, {"id": 1, "owner": "A-old", "balance": 1})
        world.crash(size)
        if since == "delete": other.delete(accounts, 1)
        if since == "patch": other.patch(accounts, 1, {"owner": "B-new"})
        if since == "increment": other.increment(accounts, 1, {"balance": 5})
        if since == "insert": other.insert(accounts, {"id": 1, "owner": "B-new", "balance": 2})
        world.flush_once()
        print("after B", world.rows())
        world.app.insert(events, {"kind": "wake"})
        print(world.losses)
        world.d()
        print("final", world.rows())
        (loss,) = world.losses
        assert loss.superseded == 1


def test_G_two_epochs_in_one_read_after_any_rewriting(world, monkeypatch):
    """Once the partition has a rewritten entry, a backlog over two epochs is dropped."""
    world.app.put(accounts, {"id": 1, "owner": "a", "balance": 0})
    world.d()
    size = world.size
    world.app.increment(accounts, 1, {"balance": 1})
    world.crash(size)
    world.app.increment(accounts, 1, {"balance": 10})
    world.d()
    assert world.rows() == {1: ("a", 11)}
    world.crash(world.size)
    world.app.increment(accounts, 1, {"balance": 100})
    world.app.insert(events, {"kind": "kept"})
    world.crash(world.size)
    world.app.increment(accounts, 1, {"balance": 1000})
    world.d()
    print(world.losses, status(world.app).lost_entries)
    assert (world.rows(), world.kinds()) == ({1: ("a", 1111)}, ["kept"])


def test_L_rolled_back_to_the_opening_of_an_epoch(world, monkeypatch):
    world.app.put(accounts, {"id": 1, "owner": "v1", "balance": 1})
    world.d()
    world.crash(world.size)
    world.flush_once()      # the flusher opens epoch 2, nobody writes
    size = world.size
    world.app.put(accounts, {"id": 1, "owner": "v2", "balance": 2})
    world.d()
    world.app._rewriter._ring._calls.clear()   # its writer is gone
    world.crash(size)
    world.flush_once()
    print(world.meta())
    print(world.rows(), status(world.app))
    got = world.app.get(accounts, 1)
    world.app.insert(events, {"kind": "w"})
    world.d()
    print(status(world.app).lost_entries, world.losses)
    assert world.app.get(accounts, 1)["owner"] == "v2" and got["owner"] == "v2"
    assert status(world.app).lost_entries == 0


def test_B_flushall_two_writers(world, monkeypatch):
    world.app.put(accounts, {"id": 1, "owner": "a", "balance": 0})
    world.d()
    with contextlib.closing(world.engine()) as other:
        other.start()
        other.put(accounts, {"id": 2, "owner": "b", "balance": 0})
        world.app.increment(accounts, 1, {"balance": 1})
        with redis.Redis.from_url(world.server.url) as c: c.flushall()
        other.increment(accounts, 2, {"balance": 1})
        time.sleep(2.5)
        world.app.increment(accounts, 1, {"balance": 10})
        world.d()
        print(world.losses)
        assert world.rows() == {1: ("a", 11), 2: ("b", 1)}


def test_D_kept_after_the_reconciling(world, monkeypatch):
    """The reply arrives, Redis crashes, another thread reconciles, and only then the call is kept."""
    world.app.put(accounts, {"id": 1, "owner": "a", "balance": 0})
    world.d()
    size = world.size
    keep = world.app._rewriter.keep
    first = []
    def late(call, last, at):
        if not first:
            first.append(1)
            world.crash(size)
            t = threading.Thread(target=lambda: world.app.increment(accounts, 1, {"balance": 10})); t.start(); t.join()
        keep(call, last, at)
    monkeypatch.setattr(world.app._rewriter, "keep", late)
    world.app.increment(accounts, 1, {"balance": 1})
    time.sleep(2.5)
    world.app.increment(accounts, 1, {"balance": 100})
    world.d()
    print(world.losses)
    assert world.rows() == {1: ("a", 111)}


def test_T_two_engines_count_the_same_loss(world, monkeypatch):
    world.app.put(accounts, {"id": 1, "owner": "a", "balance": 0})
    world.d()
    size = world.size
    with contextlib.closing(world.engine(retained_bytes_max=0)) as b, contextlib.closing(world.engine(retained_bytes_max=0)) as c:
        for n in range(3):
            world.app.increment(accounts, 1, {"balance": 1})
        b.insert(events, {"kind": "b"})
        c.insert(events, {"kind": "c"})
        world.crash(size)
        for app in (world.app, b, c):
            app.insert(events, {"kind": "after"})
        world.d()
        for l in world.losses: print(l)
        print(world.rows(), world.kinds())
        assert status(world.app).lost_entries == 2   # b and c


def test_Z_deleted_meta(world, monkeypatch):
    world.quiet(monkeypatch, world.app)
    world.app.put(accounts, {"id": 1, "owner": "a", "balance": 0})
    for n in range(3): world.app.increment(accounts, 1, {"balance": 1})
    world.d()
    with redis.Redis.from_url(world.server.url) as c: c.delete(world.app.keys.metas[0])
    world.app.increment(accounts, 1, {"balance": 10})
    world.d()
    print(world.losses, world.rows(), world.log())
    for l in status(world.app).losses: print(l)
    assert world.rows() == {1: ("a", 13)}


def test_Z2_deleted_log(world, monkeypatch):
    for n in range(7): world.app.insert(events, {"kind": str(n)})
    world.d()
    world.crash(world.size)
    world.app.insert(events, {"kind": "y"})
    world.d()
    with redis.Redis.from_url(world.server.url) as c: c.delete(world.app.keys.logs[0])
    world.app.insert(events, {"kind": "z"})
    world.d()
    print(world.losses)
    for l in status(world.app).losses: print(l)
    assert status(world.app).lost_entries == 0


def test_A_role_flip_keeps_idle_links(own_redis, sqlite_url, namespace, monkeypatch):
    p = own_redis({"appendfsync": "no"}, binary=servers.newest_redis_binary())
    q = own_redis({"appendfsync": "no"}, binary=servers.newest_redis_binary())
    world = World(p, sqlite_url, namespace)
    try:
        P, Q = redis.Redis.from_url(p.url), redis.Redis.from_url(q.url)
        world.app.put(accounts, {"id": 1, "owner": "a", "balance": 0})
        world.d()
        Q.replicaof("127.0.0.1", p.port)
        while Q.info("replication").get("master_link_status") != "up": time.sleep(.05)
        P.wait(1, 1000)
        Q.replicaof("no", "one")
        # Q never saw these
        world.app.increment(accounts, 1, {"balance": 1})
        world.app.increment(accounts, 1, {"balance": 2})
        world.d()
        print(world.rows())
        P.replicaof("127.0.0.1", q.port)
        while P.info("replication").get("master_link_status") != "up": time.sleep(.05)
        P.replicaof("no", "one")
        world.app.increment(accounts, 1, {"balance": 10})
        world.app.increment(accounts, 1, {"balance": 20})
        world.d()
        world.flush_once()
        print(world.rows(), world.app.get(accounts, 1), world.losses)
        assert world.rows() == {1: ("a", 33)}
    finally:
        world.app.close()
