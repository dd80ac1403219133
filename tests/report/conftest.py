"""One set of synthetic records for every report test."""

import pyarrow as pa
import pytest

from tests.report import synthetic
from vlmrl.eval import measures, records


@pytest.fixture(scope="session")
def table() -> pa.Table:
    rows = [record._asdict() for record in synthetic.records()]
    return pa.Table.from_pylist(rows, schema=records.SCHEMA)


@pytest.fixture(scope="session")
def metrics(table) -> list[dict]:
    return measures.summarise(table)
