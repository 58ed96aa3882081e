"""The Lua scripts, with the names by which Redis caches them."""

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files

__all__ = [
    "APPEND",
    "BARRIER",
    "CACHE_FILL",
    "CACHE_INVALIDATE",
    "CACHE_LOOK",
    "CACHE_RELEASE",
    "DISTRUST",
    "FORGET",
    "HIT",
    "MISSING",
    "OPEN_EPOCH",
    "PUBLISH",
    "RECORD_FILL",
    "RECORD_LEASE",
    "RECORD_OVERLAY",
    "RECORD_RELEASE",
    "REWRITE",
    "SETTLE",
    "TRUST",
    "Script",
]


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the SHA-1 that EVALSHA knows it by."""

    name: str
    text: bytes = field(init=False, repr=False)
    sha: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        text = files("writebehind.engine.adapters").joinpath("lua").joinpath(f"{self.name}.lua").read_bytes()
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "sha", hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


APPEND = Script("append")
OPEN_EPOCH = Script("open_epoch")
BARRIER = Script("barrier")
CACHE_LOOK = Script("cache_look")
CACHE_FILL = Script("cache_fill")
CACHE_RELEASE = Script("cache_release")
CACHE_INVALIDATE = Script("cache_invalidate")
DISTRUST = Script("distrust")
FORGET = Script("forget")
HIT = Script("hit")
MISSING = Script("missing")
RECORD_LEASE = Script("record_lease")
RECORD_FILL = Script("record_fill")
RECORD_OVERLAY = Script("record_overlay")
RECORD_RELEASE = Script("record_release")
REWRITE = Script("rewrite")
SETTLE = Script("settle")
PUBLISH = Script("publish")
TRUST = Script("trust")
