"""Which published weaknesses of Redis a version has that matter to this product.

A distributor may have mended an older version, and no server tells: so this is a note, whatever the weakness.
"""

from typing import Final

from writebehind.engine.core.facts import RedisFacts
from writebehind.engine.core.finding import Finding, Severity

__all__ = ["ADVISORIES", "advisories"]

ADVISORIES: Final = (
    (
        "CVE-2025-49844, CVE-2025-46817, -46818 and -46819 (Lua: whoever may run scripts may run code on the server)",
        ((7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    ),
    (
        "XREAD and XREADGROUP pass over the key patterns of ACL users (a flusher's user can read other streams)",
        ((7, 4, 11), (8, 2, 9), (8, 4, 6), (8, 6, 6)),
    ),
)
"""Each with the first version without it in each branch. Sources: the release notes and advisories of Redis."""


def advisories(redis: RedisFacts) -> Finding | None:
    """What is known of this version, where it is Redis's own."""
    code = "server-advisories"
    if redis.product != "Redis" or redis.version is None:
        return None
    found = [what for what, fixed in ADVISORIES if not _has(redis.version, fixed)]
    named = ".".join(map(str, redis.version))
    if not found:
        return Finding(code, Severity.OK, f"Redis {named} has the known fixes.", "They are those of 2025 and 2026.")
    return Finding(
        code, Severity.NOTE, f"Redis {named}, as its makers released it, has: {'; '.join(found)}.",
        "They matter where not everybody who can log in is trusted. A distributor may have mended them.",
        "upgrade to the last release of its branch, or of a newer one",
    )  # fmt: skip


def _has(version: tuple[int, ...], fixed: tuple[tuple[int, ...], ...]) -> bool:
    """Tell whether a version is at or past the fix of its branch, or of a branch behind all of them."""
    branch = [each for each in fixed if each[:2] == version[:2]]
    return version >= branch[0] if branch else version[:2] > max(fixed)[:2]
