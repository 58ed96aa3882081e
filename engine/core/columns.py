"""What the rest of the core knows of a table: its entity, its columns, their limits and what breaks them.

The limits are facts about one database column, gathered once by the declaration (see
``engine/adapters/declaration.py``), so that a value which the database would refuse, round or
truncate is refused before anything is written.

Invariants:

1. Every limit is as narrow as the database's own: a value inside the limits comes back as it went in.
2. A key never holds NULL.
3. Writes to one key always land in one partition: ``partition_by`` names a column of the key, or the
   entity is insert-only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite, isnan
from struct import Struct
from typing import Any, Final, Literal, TypeAlias

from writebehind.engine.config import FIELDS_MAX
from writebehind.engine.errors import ConfigurationError

__all__ = [
    "JSON_ITEMS_MAX",
    "NO_DEFAULT",
    "NUMERIC_KINDS",
    "Column",
    "Entity",
    "Kind",
    "NoDefault",
    "Violation",
    "bytes_violation",
    "decimal_violation",
    "float_violation",
    "json_violation",
    "moment_violation",
    "text_violation",
]


class Kind(Enum):
    """How a column's values look to the caller, on the wire and in Redis."""

    INTEGER = "integer"
    FLOAT = "float"
    NUMERIC = "numeric"
    TEXT = "text"
    BOOLEAN = "boolean"
    DATE = "date"
    TIME = "time"
    DATETIME = "datetime without time zone"
    DATETIME_UTC = "datetime with time zone"
    INTERVAL = "interval"
    BYTES = "bytes"
    JSON = "json"
    UUID = "uuid"
    ENUM = "enum"


NUMERIC_KINDS: Final = frozenset({Kind.INTEGER, Kind.FLOAT, Kind.NUMERIC})
"""The kinds that ``increment`` adds to."""


_SINGLE: Final = 32
_MICROSECOND_DIGITS: Final = 6


class NoDefault(Enum):
    """The type of ``NO_DEFAULT``: None cannot stand for it, being a value."""

    NO_DEFAULT = "no default"

    def __repr__(self) -> str:
        return self.name


NO_DEFAULT: Final = NoDefault.NO_DEFAULT


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column and every limit that its database puts on a value.

    Attributes:
        name: as in SQL, and the name of the field in the Redis hash.
        kind: the family of values.
        nullable: False also for every key column.
        primary_key: whether the column belongs to the key.
        default: a user value, or a function without arguments that makes one; applied by the
            writer where a column is omitted. ``NO_DEFAULT`` where there is none.
        server_default: only the database can make the value: a put has to name it.
        autoincrement: the database numbers new rows: an insert may omit it.
        minimum: least value of an INTEGER (None: 64 bits), a FLOAT or NUMERIC, or an integer inside JSON.
        maximum: greatest value, likewise.
        precision: digits of a NUMERIC, or None where only the database's own limit holds.
        scale: digits after the point of a NUMERIC, or None where each value keeps its own.
        significant_digits: digits from the first to the last that is not 0 which a NUMERIC keeps
            (SQLite computes in doubles: 15), or None.
        length: characters of a TEXT, bytes of BYTES, or None.
        exact_length: the database pads shorter BYTES (BINARY), so they are refused.
        blank_padded: the database pads or strips trailing spaces (CHAR), so they are refused.
        bytes_max: UTF-8 bytes of a TEXT or JSON (MySQL TEXT: 65,535), or None.
        float_bits: 64, or 32 where six digits are all that comes back reliably.
        finite_only: the database refuses infinities and NaN.
        nan_allowed: False where the database turns NaN into NULL (SQLite).
        fraction_digits: digits of a second that the column keeps, 0 to 6.
        earliest: least DATE, DATETIME, DATETIME_UTC or INTERVAL, as a wire value, or None.
        latest: greatest, likewise.
        labels: what the database stores for an ENUM, each with what the caller gets for it.
        json_depth_max: dicts and lists inside each other in a JSON document.
        as_uuid: whether the caller gets ``uuid.UUID`` or ``str``; both are accepted where False.
        as_decimal: whether the caller gets ``Decimal`` or ``float`` for a NUMERIC.
    """

    name: str
    kind: Kind
    nullable: bool = True
    primary_key: bool = False
    default: Any = field(default=NO_DEFAULT, hash=False)
    server_default: bool = False
    autoincrement: bool = False
    minimum: int | None = None
    maximum: int | None = None
    precision: int | None = None
    scale: int | None = None
    significant_digits: int | None = None
    length: int | None = None
    exact_length: bool = False
    blank_padded: bool = False
    bytes_max: int | None = None
    float_bits: Literal[32, 64] = 64
    finite_only: bool = False
    nan_allowed: bool = True
    fraction_digits: int = 6
    earliest: Any = None
    latest: Any = None
    labels: Mapping[str, object] = field(default_factory=dict, hash=False)
    json_depth_max: int = 100
    as_uuid: bool = True
    as_decimal: bool = True

    @property
    def single_precision(self) -> bool:
        """Whether a FLOAT keeps six digits only."""
        return self.float_bits == _SINGLE

    @property
    def keeps_microseconds(self) -> bool:
        """Whether nothing of a second's fraction is lost."""
        return self.fraction_digits >= _MICROSECOND_DIGITS

    @property
    def integer_limits(self) -> tuple[int, int]:
        """Least and greatest integer of an INTEGER column."""
        low = -(2**63) if self.minimum is None else self.minimum
        return low, 2**63 - 1 if self.maximum is None else self.maximum

    @property
    def has_default(self) -> bool:
        """Whether the writer can make a value where none is given."""
        return self.default is not NO_DEFAULT

    def make_default(self) -> Any:
        """Return the default as a user value: a function is called anew each time."""
        return self.default() if callable(self.default) else self.default


@dataclass(frozen=True)
class Entity:
    """A declared table.

    Args:
        name: ``table`` or ``schema.table``, in Redis keys and on the wire.
        columns: in the order of the table.
        key: the columns of the primary key, in its order; at least one.
        partition_by: the column whose value alone chooses the partition, so that children lie
            beside their parent; None: the whole key does.

    Raises:
        ConfigurationError: no key, too many columns, or ``partition_by`` names no column.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[Column, ...]
    partition_by: str | None = None

    def __post_init__(self) -> None:
        if not self.key:
            raise ConfigurationError(
                f"table {self.name} has no primary key", "declare one: a record is found by it in Redis and in SQL"
            )
        if len(self.columns) > FIELDS_MAX:
            raise ConfigurationError(
                f"table {self.name} has {len(self.columns)} columns; {FIELDS_MAX} are possible",
                "divide it, or keep rarely used columns in a JSON document",
            )
        if self.partition_by is not None and self.partition_by not in {column.name for column in self.columns}:
            raise ConfigurationError(
                f"table {self.name}: partition_by names {self.partition_by!r}, which is no column",
                f"name one of {', '.join(column.name for column in self.columns)}",
            )

    @property
    def insert_only(self) -> bool:
        """Whether only ``insert`` is possible: its partition cannot be told from its key."""
        return self.partition_by is not None and self.partition_by not in {column.name for column in self.key}


JSON_ITEMS_MAX: Final = 1_000_000
"""Scalars and containers of one document. A few nested references to one list can stand for billions."""

Violation: TypeAlias = tuple[str, str]
"""What a value breaks, as the end of a sentence about the column, and the remedy."""

_FLOAT32: Final = Struct("<f")
_UNLIMITED_DIGITS: Final = 131_072  # PostgreSQL's documented limits of a numeric without precision
_UNLIMITED_SCALE: Final = 16_383


def float_violation(column: Column, value: float) -> Violation | None:
    """Return what keeps a FLOAT column from holding the value, or None."""
    if not isfinite(value):
        if column.finite_only or (isnan(value) and not column.nan_allowed):
            return "cannot hold NaN or this infinity in this database", "pass None where the column is nullable"
    elif column.single_precision:
        try:
            (kept,) = _FLOAT32.unpack(_FLOAT32.pack(value))
        except OverflowError:
            kept = None
        if kept is None or float(f"{kept:.6g}") != value:
            return "is single precision and keeps six digits", "declare a double, or round before writing"
    if column.minimum is not None and value < column.minimum:
        return f"takes numbers from {column.minimum}", "pass one that is not smaller, or declare it signed"
    return None


def decimal_violation(column: Column, value: Decimal) -> Violation | None:  # noqa: PLR0911 -- one for each limit
    """Return what keeps a NUMERIC column from holding the value, or None. Cheap for any exponent."""
    if not value.is_finite():
        return "takes finite numbers only", "pass None where the column is nullable"
    if not value:
        return None
    digits = _UNLIMITED_DIGITS if column.precision is None else column.precision - (column.scale or 0)
    if value.adjusted() >= digits:
        return f"takes numbers below 10^{digits}", "pass a smaller one or widen the column"
    scale = _UNLIMITED_SCALE if column.scale is None else column.scale
    _, figures, exponent = value.as_tuple()
    zeros = 0
    while figures[-1 - zeros] == 0:
        zeros += 1
    if -(int(exponent) + zeros) > scale:
        return f"keeps {scale} digits after the point", "round with quantize() before writing"
    if column.significant_digits is not None and len(figures) - zeros > column.significant_digits:
        return (
            f"keeps {column.significant_digits} digits in this database",
            "round before writing, or store a scaled integer",
        )
    low, high = column.minimum, column.maximum
    if (low is not None and value < low) or (high is not None and value > high):
        return f"takes numbers from {low} to {high}", "pass one inside this range"
    return None


def text_violation(column: Column, value: str) -> Violation | None:
    """Return what keeps a TEXT or JSON column from holding the text, or None."""
    if column.length is not None and len(value) > column.length:
        return f"holds {column.length} characters", "shorten the text or widen the column"
    if "\0" in value:
        return "cannot hold the NUL character", "remove it, or use a bytes column"
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        return "cannot hold lone surrogates", "decode the text with errors='replace', or use a bytes column"
    if column.bytes_max is not None and size > column.bytes_max:
        return f"holds {column.bytes_max} bytes of UTF-8", "shorten the value or widen the column"
    if column.blank_padded and value.endswith(" "):
        return "is CHAR, which loses trailing spaces", "strip them, or declare VARCHAR"
    return None


def bytes_violation(column: Column, value: bytes) -> Violation | None:
    """Return what keeps a BYTES column from holding the bytes, or None."""
    if column.length is not None and len(value) > column.length:
        return f"holds {column.length} bytes", "shorten the value or widen the column"
    if column.exact_length and len(value) != column.length:
        return f"is BINARY, which pads to {column.length} bytes", "pad before writing, or declare VARBINARY"
    return None


def moment_violation(column: Column, value: Any) -> Violation | None:
    """Return what keeps a column of dates, times or intervals from holding the wire value, or None."""
    low, high = column.earliest, column.latest
    if (low is not None and value < low) or (high is not None and value > high):
        return f"takes values from {low} to {high}", "pass one inside this range"
    if not column.keeps_microseconds and isinstance(value, datetime | time | timedelta):
        fraction = value.microseconds if isinstance(value, timedelta) else value.microsecond
        if fraction % 10 ** (_MICROSECOND_DIGITS - column.fraction_digits):
            return (
                f"keeps {column.fraction_digits} digits of a second's fraction",
                "round before writing, or declare it with fractions (MySQL: fsp=6)",
            )
    return None


def json_violation(column: Column, document: Any) -> Violation | None:
    """Return what keeps a JSON column from holding the document, or None.

    Walks with a list instead of recursion, so that no nesting can exhaust the stack.
    """
    level, depth, items = [document], 0, 0
    while level:
        items += len(level)
        if items > JSON_ITEMS_MAX:
            return f"holds JSON of at most {JSON_ITEMS_MAX} items", "divide the document"
        below: list[Any] = []
        for item in level:
            if depth >= column.json_depth_max and isinstance(item, dict | list):
                return f"holds JSON of at most {column.json_depth_max} nested levels", "flatten the document"
            violation = _item_violation(column, item, below)
            if violation is not None:
                return violation
        level, depth = below, depth + 1
    return None


def _item_violation(column: Column, item: Any, below: list[Any]) -> Violation | None:  # noqa: PLR0911 -- likewise
    """Check one item, and add what it contains to ``below``."""
    if item is None or isinstance(item, bool):
        return None
    if isinstance(item, dict):
        below.extend(item.keys())
        below.extend(item.values())
        wrong = next((name for name in item if not isinstance(name, str)), None)
        return None if wrong is None else ("takes JSON objects with str keys only", "convert the keys with str()")
    if isinstance(item, list):
        below.extend(item)
    elif isinstance(item, str):
        if "\0" in item:
            return "cannot hold the NUL character inside JSON", "remove it"
    elif isinstance(item, int):
        low, high = column.minimum, column.maximum
        if (low is not None and item < low) or (high is not None and item > high):
            return f"keeps integers inside JSON exactly only from {low} to {high}", "write it as a string"
    elif not isinstance(item, float):
        return f"takes JSON of dict, list, str, int, float, bool and None, not {type(item).__name__}", "convert it"
    elif not isfinite(item):
        return "cannot hold NaN or infinity inside JSON", "write None or a string"
    return None
