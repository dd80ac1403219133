"""`vlmrl report`: everything a reader sees, again, from records alone."""

import json

import pyarrow as pa
import pytest

from tests.report import synthetic
from vlmrl.eval import measures, records
from vlmrl.report import assemble

MODELS = {k: v for k, v in synthetic._MODELS.items() if k[1] in (0, 60)}


@pytest.fixture(scope="module")
def table() -> pa.Table:
    rows = synthetic.records(examples=24, models=MODELS)
    return pa.Table.from_pylist([r._asdict() for r in rows], schema=records.SCHEMA)


@pytest.fixture
def run(tmp_path, table):
    """A run directory with records in one file."""
    records.write(tmp_path / "records.parquet", table)
    return tmp_path


def test_it_writes_everything_from_the_records(vlmrl, capsys, run, table):
    vlmrl("report", "--workdir", run, "--title=A <run> & more")
    output = capsys.readouterr().out
    rows = json.loads((run / "metrics.json").read_text())
    assert rows == json.loads(json.dumps(measures.summarise(table)))
    assert len(rows) == len(MODELS) * len(synthetic.CONDITIONS)
    assert json.loads((run / "claims.json").read_text())
    for suffix in ("md", "csv", "tex"):
        assert list((run / "tables").glob(f"*.{suffix}"))
    assert list((run / "figures").iterdir())
    page = (run / "report.html").read_text()
    assert "A &lt;run&gt; &amp; more" in page and "<run>" not in page
    assert "wrong_caption" in output and f"report: {run / 'report.html'}" in output
    assert not [p for p in run.rglob("*") if ".partial" in p.name or ".tmp" in p.name]


@pytest.mark.slow
def test_it_remembers_its_title(vlmrl, run):
    vlmrl("report", "--workdir", run, "--title=The first title")
    vlmrl("report", "--workdir", run)
    assert "The first title" in (run / "report.html").read_text()


@pytest.mark.slow
def test_records_in_parts_give_the_same_numbers(vlmrl, run, tmp_path, table):
    vlmrl("report", "--workdir", run)
    parts = tmp_path / "parts"
    for name in {r for r, _ in MODELS}:
        mine = table.filter(pa.compute.equal(table["recipe"], name))
        (parts / name / "records").mkdir(parents=True)
        records.write(parts / name / "records" / "last.parquet", mine)
    vlmrl("report", "--workdir", parts)
    actual, expected = (
        {tuple(r.values())[:5]: r for r in json.loads((d / "metrics.json").read_text())}
        for d in (parts, run)
    )
    assert actual == expected


def test_images_are_kept_by_example(tmp_path):
    stored = synthetic.images(3)
    examples = [
        synthetic_example(name, (image,)) for name, image in list(stored.items())[:2]
    ]
    assemble.write_images(tmp_path, examples)
    assemble.write_images(tmp_path, [synthetic_example("none", ())])
    last = list(stored)[2]
    assemble.write_images(tmp_path, [synthetic_example(last, (stored[last],))])
    assert assemble.read_images(tmp_path) == stored
    assert [p.name for p in tmp_path.iterdir()] == ["images.parquet"]


def synthetic_example(name, images):
    from tests import kit

    name = name.removeprefix("scenes/")
    return kit.examples(1)[0]._replace(id=name, images=images)


def test_refusals(refused, run, tmp_path, table):
    empty = tmp_path / "empty"
    assert "holds no records; run vlmrl eval" in refused("report", workdir=empty)
    assert "--workdir: must be given" in refused("report")
    none = tmp_path / "none"
    assert f"{none}: holds no records" in refused("report", none, workdir=empty)
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "records.parquet").write_bytes((run / "records.parquet").read_bytes()[:-99])
    assert "not a readable Parquet file" in refused_with_records(refused, torn)
    twice = tmp_path / "twice" / "records"
    twice.mkdir(parents=True)
    for name in ("a", "b"):
        records.write(twice / f"{name}.parquet", table)
    assert "given 2 times" in refused("report", workdir=twice.parent)


def refused_with_records(refused, workdir):
    """`refused` but for the records file, which was there before."""
    output = refused("report", "--workdir", workdir)
    assert [p.name for p in workdir.iterdir()] == ["records.parquet"]
    return output
