"""The synthetic records of the report tests."""

from tests.report.conftest import table

__all__ = ["table"]
