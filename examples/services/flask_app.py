"""Accounts: ``python -m writebehind.examples.services.flask_app``, or ``app`` under any WSGI server."""

import signal
import threading
from os import environ
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

import sqlalchemy as sa
from flask import Flask, abort

from writebehind.engine import ValidationError, WriteBehind, WriteBehindError
from writebehind.flushers import status

owned, balanced = sa.Column("owner", sa.String(100), default=""), sa.Column("balance", sa.BigInteger, default=0)
accounts = sa.Table("accounts", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True), owned, balanced)
wb = WriteBehind(redis=environ["REDIS_URL"], database=environ["DATABASE_URL"], tables=[accounts], namespace="bank")
deposits, totals = wb.rate_limiter("deposits", limit=10, window_seconds=60), wb.cache("totals", ttl_seconds=5)
app = Flask(__name__)
app.register_error_handler(WriteBehindError, lambda e: (str(e), 422 if isinstance(e, ValidationError) else 503))


@app.get("/accounts/<int:number>")
def read(number: int) -> dict[str, object]:
    return wb.get(accounts, number) or abort(404)


@app.put("/accounts/<int:number>/<owner>")
def open_account(number: int, owner: str) -> tuple[str, int]:
    with wb.atomic(accounts, number) as group:  # a new account, or an owner for one that keeps its balance
        group.increment(accounts, number, {"balance": 0})
        group.patch(accounts, number, {"owner": owner})
    return "", 204


@app.post("/accounts/<int:number>/deposits/<int:amount>")
def deposit(number: int, amount: int) -> tuple[str, int]:
    deposits.hit(f"account:{number}") or abort(429)
    wb.increment(accounts, number, {"balance": amount})
    return "", 204


@app.get("/total")
@totals.cached(key=lambda: "all")
def total() -> dict[str, int]:
    with wb.database.connect() as connection:  # as far as it is flushed
        return {"total": int(connection.scalar(sa.select(sa.func.sum(balanced))) or 0)}


@app.get("/health")
def health() -> tuple[dict[str, float], int]:
    found = status(wb)
    return {"backlog": found.backlog, "lag_seconds": found.lag_seconds}, 503 if found.halted or found.damaged else 200


if __name__ == "__main__":
    kind: type[WSGIServer] = type("Server", (ThreadingMixIn, WSGIServer), {})
    with wb, make_server("127.0.0.1", int(environ["PORT"]), app, server_class=kind) as server:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        server.serve_forever()  # then requests under way are answered, then connections are closed
