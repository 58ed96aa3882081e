"""SQL statements for rows of one shape, compiled once, and the binding of wire values to them.

The texts come from SQLAlchemy's compilers and the values through its bind processors. Only the
loop between them is our own where the driver takes parameters by position: SQLAlchemy's own
execution costs more per row than SQLite does.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import BindTyping
from sqlalchemy.sql.dml import Insert, UpdateBase

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.core.columns import Kind
from writebehind.flushers.bulk.grouping import Assignment, Row

__all__ = ["Converter", "Statement", "Target", "bound_rows"]

Converter = Callable[[Any], Any]
"""From a wire value that is not None to what the driver takes."""

STATEMENTS_MAX: Final = 1_000
"""Compiled statements kept per table; a table of many columns has many subsets to patch."""


class Statement:
    """One statement for one row, run for many.

    Args:
        clause: the statement; the bind parameter of a column is named by ``Target.parameter``.
        columns: the columns it binds, by the names of their parameters.
        declared: the table.
        dialect: that of the connections it will run on.
    """

    __slots__ = ("_clause", "_columns", "_converters", "_names", "_text")

    def __init__(
        self, clause: UpdateBase, columns: Mapping[str, str], declared: DeclaredTable, dialect: sa.Dialect
    ) -> None:
        positional = _positional(clause, dialect)
        by_position = positional is not None
        self._clause = clause
        self._text: str | None = positional[0] if positional else None
        self._names: tuple[str, ...] = positional[1] if positional else tuple(columns)
        self._columns = tuple(columns[name] for name in self._names)
        self._converters = {
            name: converter
            for name in self._columns
            if (converter := _converter(declared, name, dialect if by_position else None)) is not None
        }

    def run(self, connection: sa.Connection, rows: Sequence[Row]) -> int:
        """Run it for each row; return how many rows of the table matched, or -1 where the driver cannot tell."""
        parameters = bound_rows(rows, self._columns, self._converters)
        if not self._columns:
            return sum(connection.execute(self._clause).rowcount for _ in rows)
        if self._text is not None:
            return connection.exec_driver_sql(self._text, parameters).rowcount
        names = self._names
        return connection.execute(
            self._clause, [dict(zip(names, values, strict=True)) for values in parameters]
        ).rowcount


class Target:
    """A declared table as the statements see it: without the defaults, triggers of SQLAlchemy and keys of its model.

    Only what a row names may be written, so the model's ``default`` and ``onupdate`` must not join in.

    Attributes:
        table: the bare table.
        key: the names of its key columns.
    """

    __slots__ = ("_declared", "_dialect", "_prefix", "_statements", "key", "table")

    def __init__(self, declared: DeclaredTable, dialect: sa.Dialect) -> None:
        model = declared.table
        self._declared = declared
        self._dialect = dialect
        self._statements: dict[tuple[Any, ...], Statement] = {}
        # SQLAlchemy reserves the names of columns.
        self._prefix = "p"
        while any(column.name.startswith(self._prefix) for column in model.columns):
            self._prefix += "_"
        self.key = tuple(column.name for column in declared.entity.key)
        self.table = sa.table(
            model.name,
            *(sa.column(column.name, _bindable(column.type)) for column in model.columns),
            schema=model.schema,
        )

    def parameter(self, name: str) -> sa.BindParameter[Any]:
        """Return the bind parameter of a column: numbered, because a column may have any name."""
        position = list(self.table.c.keys()).index(name)
        return sa.bindparam(f"{self._prefix}{position}", type_=self.table.c[name].type)

    def insertion(self, columns: Sequence[str]) -> Insert:
        """Return ``INSERT`` of one row."""
        return sa.insert(self.table).values({name: self.parameter(name) for name in columns})

    def where_key(self) -> sa.ColumnElement[bool]:
        """Return the condition that selects one row by its key."""
        return sa.and_(*(self.table.c[name] == self.parameter(name) for name in self.key))

    def statement(
        self, kind: str, shape: tuple[Any, ...], columns: Sequence[str], build: Callable[[], UpdateBase]
    ) -> Statement:
        """Return the statement of this kind and shape, built at its first use."""
        statement = self._statements.get((kind, shape))
        if statement is None:
            if len(self._statements) >= STATEMENTS_MAX:
                self._statements.clear()
            parameters = {str(self.parameter(name).key): name for name in columns}
            statement = Statement(build(), parameters, self._declared, self._dialect)
            self._statements[kind, shape] = statement
        return statement

    def insert(self, columns: tuple[str, ...]) -> Statement:
        """Return ``INSERT``, which fails where the row exists."""
        return self.statement("insert", columns, columns, lambda: self.insertion(columns))

    def delete(self) -> Statement:
        """Return ``DELETE`` by key."""
        return self.statement("delete", (), self.key, lambda: sa.delete(self.table).where(self.where_key()))

    def update(self, assignment: Assignment) -> Statement:
        """Return ``UPDATE`` by key; NULL counts as 0 in what is added to."""

        def build() -> UpdateBase:
            values: dict[str, Any] = {name: self.parameter(name) for name in assignment.sets}
            values.update((name, self._sum(name)) for name in assignment.increments)
            return sa.update(self.table).where(self.where_key()).values(values)

        columns = (*assignment.sets, *assignment.increments, *self.key)
        return self.statement("update", assignment, columns, build)

    def _sum(self, name: str) -> sa.ColumnElement[Any]:
        column = self.table.c[name]
        total = sa.func.coalesce(column, sa.literal_column("0")) + self.parameter(name)
        declared = self._declared.plan.columns[name]
        if self._dialect.name == "sqlite" and declared.kind is Kind.NUMERIC and declared.scale is not None:
            # SQLite has no decimals: 0.1 + 0.2 would be stored as 0.30000000000000004.
            return sa.func.round(total, sa.literal_column(str(declared.scale)))
        return total


def _positional(clause: UpdateBase, dialect: sa.Dialect) -> tuple[str, tuple[str, ...]] | None:
    """Return a statement's text with parameters by position, and their names, or None where the driver needs more."""
    compiled = clause.compile(dialect=dialect)
    if dialect.bind_typing is BindTyping.SETINPUTSIZES:
        return None
    if dialect.paramstyle in {"qmark", "format"}:
        return str(compiled), tuple(compiled.positiontup or ())
    if dialect.paramstyle != "pyformat":
        return None
    names: list[str] = []

    def by_position(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        names.append(match[1])
        return "%s"

    # Drivers that take pyformat take format too. A doubled percent sign is text.
    return re.sub(r"%%|%\((\w+)\)s", by_position, str(compiled)), tuple(names)


def bound_rows(
    rows: Sequence[Row], columns: Sequence[str], converters: Mapping[str, Converter]
) -> list[tuple[Any, ...]]:
    """Return the rows' values in the order of the columns, converted; only converted columns cost a call per value."""
    if not converters:
        if len(columns) == 1:
            (only,) = columns
            return [(row[only],) for row in rows]
        return list(map(itemgetter(*columns), rows)) if columns else [()] * len(rows)
    return list(zip(*(_bound_column(rows, name, converters.get(name)) for name in columns), strict=True))


def _bound_column(rows: Sequence[Row], name: str, converter: Converter | None) -> Iterable[Any]:
    values = map(itemgetter(name), rows)
    if converter is None:
        return values
    return [None if value is None else converter(value) for value in values]


def _bindable(kind: sa.types.TypeEngine[Any]) -> sa.types.TypeEngine[Any]:
    """Return the type with None as NULL: SQLAlchemy's JSON would store the document ``null``."""
    if isinstance(kind, sa.JSON) and not kind.none_as_null:
        return kind.adapt(type(kind), none_as_null=True)
    return kind


def _converter(declared: DeclaredTable, name: str, dialect: sa.Dialect | None) -> Converter | None:
    """Return what makes a wire value the driver's, or with ``dialect`` None what SQLAlchemy takes."""
    to_bind: Converter | None = declared.to_bind.get(name)
    if dialect is None:
        return to_bind
    processor = declared.table.c[name].type.dialect_impl(dialect).bind_processor(dialect)
    if to_bind is None or processor is None:
        convert = to_bind or processor
    else:

        def convert(value: Any) -> Any:
            return processor(to_bind(value))

    return _quicker(convert, declared.plan.columns[name].kind) if dialect.name == "sqlite" and convert else convert


def _quicker(convert: Converter, kind: Kind) -> Converter | None:
    """Return what does the same as SQLAlchemy's converter for SQLite in less time, where it does: dates cost most."""
    if kind is Kind.BOOLEAN and [convert(True), convert(False)] == [True, False]:  # noqa: FBT003
        return None
    zone = UTC if kind is Kind.DATETIME_UTC else None
    probes = datetime(1, 2, 3, 4, 5, 6, 7), datetime(2000, 1, 1), datetime(2345, 12, 31, 23, 59, 59, 999_990)  # noqa: DTZ001
    moments = [probe.replace(tzinfo=zone) for probe in probes]
    if kind in {Kind.DATETIME, Kind.DATETIME_UTC} and all(convert(moment) == _iso(moment) for moment in moments):
        return _iso
    return convert


def _iso(value: datetime) -> str:
    return value.isoformat(" ", "microseconds")[:26]
