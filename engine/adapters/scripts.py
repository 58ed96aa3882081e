"""The Lua scripts, with the names by which Redis caches them."""

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files

__all__ = [
    "APPEND",
    "BARRIER",
    "DISTRUST",
    "FORGET",
    "MISSING",
    "OPEN_EPOCH",
    "PUBLISH",
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
DISTRUST = Script("distrust")
FORGET = Script("forget")
MISSING = Script("missing")
REWRITE = Script("rewrite")
SETTLE = Script("settle")
PUBLISH = Script("publish")
TRUST = Script("trust")
