import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from haq.errors import HardwareError
from haq.hwmodels import CostTable, size_bytes
from haq.policy import BitPolicy, LayerBits


@pytest.fixture
def file(table, tmp_path):
    table.save(tmp_path / "costs.parquet")
    return tmp_path / "costs.parquet"


def assert_equal(one: CostTable, other: CostTable) -> None:
    for name in ("hardware", "batch", "layers", "w_bits", "a_bits", "origin", "version"):
        assert getattr(one, name) == getattr(other, name)
    assert list(one.metrics) == list(other.metrics)
    for metric, costs in one.metrics.items():
        assert np.array_equal(costs, other.metrics[metric])


def error_of(file) -> str:
    with pytest.raises(HardwareError) as error:
        CostTable.load(file)
    message = str(error.value)
    assert file.name in message
    assert "\n" not in message
    return message


def test_round_trip_is_exact(table, file):
    assert_equal(CostTable.load(file), table)
    assert [path.name for path in file.parent.iterdir()] == ["costs.parquet"]


def test_the_order_of_the_rows_does_not_matter_within_a_layer(table, file):
    content = pq.read_table(file)
    pq.write_table(content.sort_by([("a_bits", "descending")]), file)
    assert_equal(CostTable.load(file), table)


def test_other_readers_see_units_and_values(table, file):
    frame = pq.read_table(file).to_pandas()
    assert list(frame.columns) == [
        "layer",
        "w_bits",
        "a_bits",
        "latency_ms",
        "energy_mj",
        "size_bytes",
        "bops",
        "bits_per_weight",
        "detail_memory_bound",
    ]
    row = frame[(frame.layer == "fc") & (frame.w_bits == 4) & (frame.a_bits == 3)]
    assert row.bops.item() == table.metrics["bops"][2, 1, 0]


def test_the_folder_may_look_like_a_parquet_partition(table, tmp_path):
    table.save(tmp_path / "w_bits=3" / "costs.parquet")
    assert_equal(CostTable.load(tmp_path / "w_bits=3" / "costs.parquet"), table)


def test_a_missing_or_corrupt_file(file):
    whole = file.read_bytes()
    for content in (b"", b"PAR1 but no more", whole[: len(whole) // 2], whole[: len(whole) // 2] + whole[-8:]):
        file.write_bytes(content)
        assert "cannot read cost table" in error_of(file)
    file.unlink()
    assert "does not exist" in error_of(file)


def test_missing_or_damaged_metadata(file):
    content = pq.read_table(file)
    for metadata in (None, {"haq": "{"}, {"haq": "[]"}, {"haq": '{"hardware": "edge"}'}):
        pq.write_table(content.replace_schema_metadata(metadata), file)
        assert "lacks the metadata of a cost table" in error_of(file)


@pytest.mark.parametrize("column", ["layer", "w_bits", "a_bits"])
def test_a_missing_axis(file, column):
    pq.write_table(pq.read_table(file).drop_columns([column]), file)
    assert f"lacks the column {column!r}" in error_of(file)


def test_no_metric_at_all(file):
    pq.write_table(pq.read_table(file).select(["layer", "w_bits", "a_bits"]), file)
    assert "at least one of latency_ms" in error_of(file)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("w_bits", pa.array(["two"] * 18), "wrong type"),
        ("w_bits", pa.array([2] * 17 + [None]), "wrong type"),
        ("bops", pa.array([1.0] * 17 + [None]), "bops=nan for layer 'fc' at w_bits=8, a_bits=8"),
        ("bops", pa.array([1.0] * 17 + [-2.0]), "bops=-2.0 for layer 'fc' at w_bits=8, a_bits=8"),
    ],
)
def test_wrong_cells(file, column, values, said):
    content = pq.read_table(file)
    pq.write_table(content.set_column(content.column_names.index(column), column, values), file)
    assert said in error_of(file)


def test_missing_and_repeated_rows(file):
    content = pq.read_table(file)
    pq.write_table(content.slice(0, 17), file)
    assert "has no row for layer 'fc' at w_bits=8, a_bits=8" in error_of(file)
    pq.write_table(pa.concat_tables([content, content.slice(0, 1)]), file)
    assert "has two rows for layer 'conv1' at w_bits=2, a_bits=3" in error_of(file)


def test_a_table_of_weights_alone_round_trips(layers, tmp_path):
    table = CostTable.footprint(layers, (2, 8))
    table.save(tmp_path / "costs.parquet")
    loaded = CostTable.load(tmp_path / "costs.parquet")
    assert loaded.a_bits == (None,)
    policy = BitPolicy({layer.name: LayerBits(2, None) for layer in layers})
    assert loaded.cost(policy) == table.cost(policy)
    assert table.cost(policy)["size_bytes"] == sum(size_bytes(layer, LayerBits(2, None)) for layer in layers)
    assert "latency_ms" not in table.metrics
