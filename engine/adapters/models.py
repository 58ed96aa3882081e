"""Records as instances of the classes that their tables were declared by."""

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import orm

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.errors import ConfigurationError

__all__ = ["instances_of"]


def instances_of(declared: DeclaredTable) -> Callable[[Mapping[str, Any]], Any]:
    """Return what makes an instance of a record's user values.

    It is as SQLAlchemy would have loaded it, and then detached: no constructor is called, columns are loaded and
    unchanged, and what else the class has (relationships) needs a session: ``session.merge(instance, load=False)``.

    Raises:
        ConfigurationError: the table was declared without a class.
    """
    if declared.model is None:
        raise ConfigurationError(
            f"table {declared.entity.name} was declared without a class", "declare the class, or read dicts"
        )
    mapper: orm.Mapper[Any] = orm.class_mapper(declared.model)
    attributes = {name: mapper.get_property_by_column(declared.table.c[name]).key for name in declared.plan.columns}

    def make(record: Mapping[str, Any]) -> Any:
        instance = mapper.class_manager.new_instance()
        for name, attribute in attributes.items():
            orm.attributes.set_committed_value(instance, attribute, record[name])
        orm.make_transient_to_detached(instance)
        return instance

    return make
