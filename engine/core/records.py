"""From a caller's mapping to what a write carries, and from a Redis hash back to a record.

A ``RecordPlan`` is made once per entity; everything that can be known of the table in advance is, so
that a write only loops over its columns.

Invariants:

1. Two keys have the same key text exactly where SQL takes them for the same key.
2. A whole record has a value for every column, so that it says all that the row will hold.
3. The partition follows from the key text alone, or from the text of the ``partition_by`` column alone.
4. All of a mapping is checked before anything of it is returned.

Key text: the parts' canonical texts joined by ``:``; in each part ``%``, ``:``, ``{``, ``}``, control and
space characters are percent-encoded as UTF-8, bytes are hexadecimal, and an empty part is ``%00`` (NUL
cannot occur in a text), so that no key has the empty key text of an insert without a key.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any, Final, TypeAlias

from writebehind.engine.core.columns import NUMERIC_KINDS, Column, Entity, Kind
from writebehind.engine.core.values import NULL, Codec, codec
from writebehind.engine.errors import ConfigurationError, ValidationError

__all__ = ["KEY_BYTES_MAX", "RecordPlan"]

KEY_BYTES_MAX: Final = 512
"""Longest key text in bytes: it stands in every Redis key and log entry."""

Values: TypeAlias = dict[str, Any]
Fields: TypeAlias = list[Any]
Adder: TypeAlias = Callable[[Any, Any], Any]

_EMPTY: Final = "%00"
_SPECIAL: Final = re.compile(r"[%:{}\s\x00-\x1f\x7f-\x9f]")
_OMITTED: Final = object()
_NAMES_SHOWN: Final = 5
_NAME_SHOWN: Final = 64


class RecordPlan:
    """How to write and read the records of one entity.

    Args:
        entity: the table.

    Attributes:
        entity: the table.
        name: the entity's name.
        columns: the columns by name, in the order of the table.
        codecs: their conversions.
        adders: for each numeric column, the checked sum of a row's value and an increment.
        database_makes_keys: whether an insert may leave a column of the key to the database.
        delta_adders: for each numeric column, the sum of two increments, which may leave the range.

    Raises:
        ConfigurationError: the key has a column of JSON, whose equality no text can tell.
    """

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self.name = entity.name
        self.columns: Mapping[str, Column] = {column.name: column for column in entity.columns}
        self.codecs: Mapping[str, Codec] = {column.name: codec(entity.name, column) for column in entity.columns}
        numeric = {name: item for name, item in self.codecs.items() if item.column.kind in NUMERIC_KINDS}
        self.adders: Mapping[str, Adder] = {name: item.add for name, item in numeric.items()}
        self.delta_adders: Mapping[str, Adder] = {name: item.add_deltas for name, item in numeric.items()}
        self._key_names = tuple(column.name for column in entity.key)
        self._key_parts = tuple((column.name, _key_part(entity.name, column)) for column in entity.key)
        self.database_makes_keys = any(
            not column.has_default and (column.autoincrement or column.server_default) for column in entity.key
        )
        self._insert_only = entity.insert_only
        self._spread = entity.partition_by
        self._spread_part = None if self._spread is None else _key_part(entity.name, self.columns[self._spread])
        self._steps = tuple((item.column.name, item.convert, item.encode, item.column) for item in self.codecs.values())
        self._readers = tuple((name, name.encode(), item.decode) for name, item in self.codecs.items())
        self._presenters = {name: item.present for name, item in self.codecs.items() if item.present is not None}

    def full_record(self, record: Mapping[str, Any]) -> tuple[str, str, Values, Fields]:
        """Prepare a put.

        Omitted columns get their client default, or NULL where they are nullable and the database
        has no default of its own.

        Returns:
            Key text, partition text, wire values of all columns, and alternating names and texts.

        Raises:
            ValidationError: a column is unknown or missing, or a value does not fit.
        """
        if self._insert_only:
            raise self._no_record()
        values: Values = {}
        fields: Fields = []
        given = 0
        for name, convert, encode, column in self._steps:
            value = record.get(name, _OMITTED)
            if value is _OMITTED:
                if column.primary_key:
                    raise self._missing(column, record)
                value = self._substitute(column, record)
            else:
                given += 1
            if value is None:
                if not column.nullable:
                    raise self._null(name)
                values[name] = None
                fields += (name, NULL)
            else:
                values[name] = wire = convert(value)
                fields += (name, encode(wire))
        if given != len(record):
            raise self._unknown(record)
        key_text = self._key_text(values)
        return key_text, self._partition_text(values, key_text), values, fields

    def partial(self, key: Any, changes: Mapping[str, Any]) -> tuple[str, str, Values, Fields]:
        """Prepare a patch.

        Returns:
            Key text, partition text, wire values of the key and of the changed columns, and
            alternating names and texts of the changed columns.

        Raises:
            ValidationError: nothing changes, the key would, a column is unknown, or a value does not fit.
        """
        key_text, partition_text, values = self.key_only(key)
        fields: Fields = []
        for name, value in changes.items():
            item = self._codec(name, changes)
            wire = item.accept(value)
            if name in values:
                if wire != values[name]:
                    raise ValidationError(
                        f"{self.name}.{name} belongs to the key, which a patch cannot change",
                        "delete the record and put it under its new key",
                    )
                continue
            if wire is None and not item.column.nullable:
                raise self._null(name)
            fields += (name, item.encode_text(wire))
            values[name] = wire
        if not fields:
            raise ValidationError(f"{self.name}: a patch without columns", "name at least one column beside the key")
        return key_text, partition_text, values, fields

    def deltas(self, key: Any, amounts: Mapping[str, Any]) -> tuple[str, str, Values, Fields]:
        """Prepare an increment.

        Returns:
            As ``partial``, with amounts in place of values.

        Raises:
            ValidationError: no amount, a column is unknown, not numeric or in the key, or an amount does not fit.
        """
        key_text, partition_text, values = self.key_only(key)
        fields: Fields = []
        for name, amount in amounts.items():
            item = self._codec(name, amounts)
            if name in self._key_names:
                raise ValidationError(
                    f"{self.name}.{name} belongs to the key, which cannot be incremented", "increment other columns"
                )
            values[name] = wire = item.accept_delta(amount)
            fields += (name, item.encode(wire))
        if not fields:
            raise ValidationError(f"{self.name}: an increment without columns", "name at least one numeric column")
        return key_text, partition_text, values, fields

    def new_row(self, row: Mapping[str, Any]) -> tuple[str | None, str | None, Values]:
        """Prepare an insert. Columns that the database fills in may be omitted and stay out of the values.

        Returns:
            Key text, or None where the database makes the key; partition text, or None where any
            partition will do; wire values.

        Raises:
            ValidationError: a column is unknown or missing, or a value does not fit.
        """
        values: Values = {}
        given = 0
        for name, convert, _, column in self._steps:
            value = row.get(name, _OMITTED)
            given += value is not _OMITTED
            if value is _OMITTED or (value is None and column.autoincrement):
                if not column.has_default and (column.autoincrement or column.server_default):
                    continue
                value = self._substitute(column, row)
            if value is None and not column.nullable:
                raise self._null(name)
            values[name] = None if value is None else convert(value)
        if given != len(row):
            raise self._unknown(row)
        whole = all(name in values for name in self._key_names)
        key_text = self._key_text(values) if whole else None
        if self._spread is None or self._spread not in values:
            return key_text, key_text if self._spread is None else None, values
        return key_text, self._partition_text(values, ""), values

    def key_only(self, key: Any) -> tuple[str, str, Values]:
        """Prepare a read or a delete.

        Args:
            key: a scalar; a tuple in the order of the primary key; or a mapping of its columns.

        Returns:
            Key text, partition text and wire values of the key.

        Raises:
            ValidationError: the key does not fit, or the entity is insert-only.
        """
        if self._insert_only:
            raise self._no_record()
        names = self._key_names
        parts: Sequence[Any]
        if isinstance(key, Mapping):
            if key.keys() != set(names):
                raise self._not_a_key()
            parts = [key[name] for name in names]
        else:
            parts = key if isinstance(key, tuple) else (key,)
            if len(parts) != len(names):
                raise self._not_a_key()
        values = {}
        for name, part in zip(names, parts, strict=True):
            if part is None:
                raise self._null(name)
            values[name] = self.codecs[name].convert(part)
        key_text = self._key_text(values)
        return key_text, self._partition_text(values, key_text), values

    def key_text(self, record: Mapping[str, Any]) -> str:
        """Return the key text of a record given as user values.

        Raises:
            ValidationError: the key columns' values do not fit.
        """
        return self._key_text({name: self.codecs[name].accept(record[name]) for name in self._key_names})

    def decode_hash(self, fields: Mapping[bytes, bytes]) -> dict[str, Any] | None:
        """Return the record in a hash as user values, or None where a declared column is absent.

        Raises:
            ConfigurationError: a text is not of its column's kind.
        """
        record = self.decode_fields(fields)
        return record if len(record) == len(self.columns) else None

    def decode_fields(self, fields: Mapping[bytes, bytes]) -> dict[str, Any]:
        """Return those declared columns that a hash has as user values, passing over its other fields.

        Raises:
            ConfigurationError: a text is not of its column's kind.
        """
        record = {}
        name = ""
        try:
            for name, raw, decode in self._readers:
                text = fields.get(raw)
                if text is not None:
                    record[name] = None if text == b"\\N" else decode(text)
        except (ValueError, ArithmeticError, LookupError):
            # Their own words quote the text.
            raise self._unreadable(name) from None
        return record

    def values_to_user(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return wire values, of any columns, as user values."""
        record = dict(values)
        for name, present in self._presenters.items():
            value = record.get(name)
            if value is not None:
                record[name] = present(value)
        return record

    def default_row(self, key_values: Mapping[str, Any], given: set[str]) -> Values | None:
        """Return the row that an increment of an absent record begins with.

        Args:
            key_values: wire values of the key.
            given: the columns that are incremented; without a default they begin at NULL, which counts as 0.

        Returns:
            Wire values of all columns; or None where another column can be neither defaulted nor
            NULL, or where only the database knows what a column begins with.
        """
        row: Values = {}
        for name, column in self.columns.items():
            if name in key_values:
                row[name] = key_values[name]
            elif column.has_default:
                row[name] = self.codecs[name].accept(column.make_default())
            elif column.server_default or not (column.nullable or name in given):
                return None
            else:
                row[name] = None
        return row

    def _key_text(self, values: Mapping[str, Any]) -> str:
        parts = self._key_parts
        if len(parts) == 1:
            name, part = parts[0]
            text = part(values[name])
        else:
            text = ":".join([part(values[name]) for name, part in parts])
        if len(text) * 4 > KEY_BYTES_MAX and len(text.encode()) > KEY_BYTES_MAX:
            raise ValidationError(
                f"{self.name}: a key takes more than {KEY_BYTES_MAX} bytes as text",
                "use a shorter key, or a hash of it",
            )
        return text

    def _partition_text(self, values: Mapping[str, Any], key_text: str) -> str:
        if self._spread is None or self._spread_part is None:
            return key_text
        value = values[self._spread]
        if value is None:
            raise ValidationError(
                f"{self.name}.{self._spread} chooses the partition and cannot be NULL", "give it a value"
            )
        return self._spread_part(value)

    def _substitute(self, column: Column, record: Mapping[str, Any]) -> Any:
        """Return the value of an omitted column."""
        if column.has_default:
            return column.make_default()
        if column.nullable and not column.server_default:
            return None
        raise self._missing(column, record)

    def _missing(self, column: Column, record: Mapping[str, Any]) -> ValidationError:
        if not self.columns.keys() >= record.keys():
            return self._unknown(record)  # probably the same column, misspelt
        if column.server_default:
            return ValidationError(
                f"{self.name}.{column.name} is missing: only the database knows its default", "give it a value"
            )
        return ValidationError(
            f"{self.name}.{column.name} is missing and cannot be NULL",
            "give it a value, or use patch to change only some columns",
        )

    def _codec(self, name: str, mapping: Mapping[str, Any]) -> Codec:
        item = self.codecs.get(name)
        if item is None:
            raise self._unknown(mapping)
        return item

    def _unknown(self, mapping: Mapping[str, Any]) -> ValidationError:
        # A caller's mapping may have anything for a name, and any number of them.
        names: list[Any] = list(mapping)
        unknown = [name for name in names if not isinstance(name, str) or name not in self.columns]
        named = [
            repr(name[:_NAME_SHOWN]) if isinstance(name, str) else f"a name of type {type(name).__name__}"
            for name in unknown[:_NAMES_SHOWN]
        ]
        more = f" and {len(unknown) - _NAMES_SHOWN} more" if len(unknown) > _NAMES_SHOWN else ""
        return ValidationError(
            f"table {self.name} has no column {', '.join(sorted(named))}{more}", f"known are {', '.join(self.columns)}"
        )

    def _null(self, name: str) -> ValidationError:
        return ValidationError(f"{self.name}.{name} cannot be NULL; got None", "give it a value")

    def _no_record(self) -> ValidationError:
        return ValidationError(
            f"{self.name} is insert-only: it is partitioned by {self._spread}, which is not in its key",
            "add the column to the primary key, or remove partition_by",
        )

    def _not_a_key(self) -> ValidationError:
        return ValidationError(
            f"the key of {self.name} is ({', '.join(self._key_names)})",
            "pass a scalar, a tuple in this order, or a dict",
        )

    def _unreadable(self, name: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.name}.{name}: a text in Redis is not of kind {self.columns[name].kind.value}",
            "another program wrote the hash, or the column's type changed: drain, then delete the hash",
        )


def _key_part(entity_name: str, column: Column) -> Callable[[Any], str]:
    """Return what makes the key text of one column's wire value."""
    if column.kind is Kind.JSON:
        raise ConfigurationError(
            f"{entity_name}.{column.name} is JSON and cannot be part of a key", "use text, numbers or UUIDs as keys"
        )
    if column.kind is Kind.INTEGER:
        return str
    if column.kind is Kind.BYTES:
        return lambda wire: wire.hex() or _EMPTY
    if column.kind is Kind.FLOAT:
        return lambda wire: _float_part(entity_name, column, wire)
    if column.kind in {Kind.TEXT, Kind.ENUM}:
        return _escape
    encode: Callable[[Any], Any] = codec(entity_name, column).encode
    return lambda wire: _escape(encode(wire))


def _float_part(entity_name: str, column: Column, wire: float) -> str:
    if isnan(wire):
        raise ValidationError(f"{entity_name}.{column.name} is in the key and cannot be NaN", "give it a number")
    return repr(wire + 0.0)  # 0.0 for -0.0, its equal


def _escape(text: str) -> str:
    if not text:
        return _EMPTY
    return _SPECIAL.sub(lambda found: "".join(f"%{byte:02X}" for byte in found.group().encode()), text)
