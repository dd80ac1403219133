"""Fields of a parsed config.json, with errors that name them."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, NamedTuple

from vlmrl.types import UserError


class Section(NamedTuple):
    """A JSON object of a config.json."""

    raw: dict
    where: str  # the file, for errors
    prefix: str = ""  # of its fields' names in errors, such as 'vision_config.'

    def get(self, field: str, default=None):
        return self.raw.get(field, default)

    def require(self, field: str):
        """Return a field.

        Raises:
          UserError: it is missing or null.
        """
        if self.raw.get(field) is None:
            raise self.error(field, "is missing")
        return self.raw[field]

    def one_of(self, field: str, allowed: Container, default=None) -> Any:
        """Return a field, by default the first of those allowed.

        Raises:
          UserError: its value is none of those allowed.
        """
        first, *others = allowed
        value = self.raw.get(field, first if default is None else default)
        if value not in allowed:
            listed = ", ".join(map(repr, (first, *others)))
            raise self.error(field, f": expected {listed}, got {value!r}")
        return value

    def section(self, field: str) -> Section:
        """Return the object that a field holds.

        Raises:
          UserError: it is missing.
        """
        return Section(self.require(field), self.where, f"{self.prefix}{field}.")

    def error(self, field: str, message: str) -> UserError:
        space = "" if message.startswith(":") else " "
        return UserError(f"{self.where}: field '{self.prefix}{field}'{space}{message}")
