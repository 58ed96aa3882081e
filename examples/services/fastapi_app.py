"""Articles and their likes: ``uvicorn writebehind.examples.services.fastapi_app:app``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import environ

import sqlalchemy as sa
from fastapi import FastAPI, HTTPException, Response

from writebehind.engine import AsyncWriteBehind, ValidationError, WriteBehindError
from writebehind.flushers import status

named, liked = sa.Column("title", sa.String(100), default=""), sa.Column("likes", sa.BigInteger, default=0)
articles = sa.Table("articles", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True), named, liked)
wb = AsyncWriteBehind(redis=environ["REDIS_URL"], database=environ["DATABASE_URL"], tables=[articles], namespace="blog")
edits = wb.rate_limiter("edits", limit=5, window_seconds=60)
pages = wb.cache("pages", ttl_seconds=1, stale_seconds=10)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with wb:
        yield  # until SIGTERM: requests are answered, then writes under way are waited for


app = FastAPI(lifespan=lifespan)
app.add_exception_handler(ValidationError, lambda _, error: Response(str(error), 422))
app.add_exception_handler(WriteBehindError, lambda _, error: Response(str(error), 503, {"Retry-After": "1"}))


@app.get("/articles/{number}")
async def read(number: int) -> dict[str, object] | None:
    return await wb.get(articles, number)


@app.put("/articles/{number}")
async def write(number: int, title: str) -> None:
    if not (hit := await edits.hit(f"article:{number}")):
        raise HTTPException(429, headers={"Retry-After": str(1 + int(hit.retry_after_seconds))})
    async with wb.atomic(articles, number) as group:  # a new article, or a title for one that keeps its likes
        group.increment(articles, number, {"likes": 0})
        group.patch(articles, number, {"title": title})


@app.post("/articles/{number}/likes")
async def like(number: int) -> None:
    await wb.increment(articles, number, {"likes": 1})


@app.get("/front")
@pages.cached(key=lambda: "front")
async def front() -> list[dict[str, object]]:
    return sorted(filter(None, (await wb.get_many(articles, range(1, 11))).values()), key=lambda each: -each["likes"])


@app.get("/health")
def health(response: Response) -> dict[str, object]:
    found = status(wb.blocking)
    response.status_code = 503 if found.halted or found.damaged else 200
    return {"backlog": found.backlog, "lag_seconds": found.lag_seconds}
