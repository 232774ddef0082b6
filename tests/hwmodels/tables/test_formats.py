import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haq.errors import HardwareError
from haq.hwmodels import CostTable, bops, size_bytes
from haq.hwmodels.tables.formats import load_table, read_csv, read_npy, save_table, write_csv, write_npy
from haq.metrics import METRICS, layer_fields
from haq.policy import WIDTHS, LayerBits

SMALL = """\
# hardware: mine
# batch: 4
# origin: measured
# version: kernels 1.2

layer,w_bits,a_bits,latency_ms
conv,8,8,0.5
conv,4,8,0.25
fc,8,8,0.125
fc,4,8,1e-3
"""
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAME = TEXT.map(str.strip).filter(bool)
COST = st.floats(0, 1e300)


@st.composite
def tables(draw: st.DrawFn) -> CostTable:
    """Tables whose legal pairs are any set, so that some cells of the grid have no price."""
    widths = st.sampled_from(WIDTHS)
    weights_alone = draw(st.booleans())
    inputs = st.none() if weights_alone else widths
    legal = draw(st.sets(st.tuples(widths, inputs), min_size=1, max_size=6))
    w_bits, a_bits = sorted({w for w, _ in legal}), sorted({a for _, a in legal}, key=lambda a: a or 0)
    layers = draw(st.lists(NAME, min_size=1, max_size=3, unique=True))

    def costs(outside: float, cost: st.SearchStrategy[float]) -> np.ndarray:
        cells = [[[draw(cost) if (w, a) in legal else outside for a in a_bits] for w in w_bits] for _ in layers]
        return np.array(cells)

    fields = draw(st.sets(st.sampled_from(layer_fields()), min_size=1))
    return CostTable(
        draw(TEXT), draw(st.integers(1, 10**6)), tuple(layers), tuple(w_bits), tuple(a_bits),
        {field: costs(np.inf, COST) for field in layer_fields() if field in fields},
        draw(st.sampled_from(["modelled", "measured", "interpolated"])), draw(TEXT),
        rest=draw(st.dictionaries(st.sampled_from(sorted(fields)), COST, max_size=2)),
        details={name: costs(np.nan, st.floats()) for name in draw(st.sets(st.sampled_from(["spread", "runs"])))},
        provenance=draw(st.dictionaries(TEXT, TEXT, max_size=2)),
        limits=draw(st.dictionaries(st.sampled_from(sorted(METRICS)), st.floats(1e-9, 1e30), max_size=2)),
    )  # fmt: skip


def assert_equal(one: CostTable, other: CostTable) -> None:
    for name in ("hardware", "batch", "layers", "w_bits", "a_bits", "origin", "version", "rest", "memory"):
        assert getattr(one, name) == getattr(other, name), name
    assert (one.provenance, one.limits) == (other.provenance, other.limits)
    for ours, theirs in ((one.metrics, other.metrics), (one.details, other.details)):
        assert set(ours) == set(theirs)
        assert all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ours)


def error_of(path: Path, **options: object) -> str:
    with pytest.raises(HardwareError) as error:
        load_table(path, **options)  # type: ignore[arg-type]
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.csv"
    path.write_text(SMALL)
    return path


# CSV


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables())
def test_csv_round_trip_is_exact(tmp_path, table):
    write_csv(table, tmp_path / "table.csv")
    assert_equal(read_csv(tmp_path / "table.csv"), table)


def test_a_csv_written_by_hand(small):
    table = read_csv(small)
    assert (table.hardware, table.batch, table.origin, table.version) == ("mine", 4, "measured", "kernels 1.2")
    assert (table.layers, table.w_bits, table.a_bits) == (("conv", "fc"), (4, 8), (8,))
    assert table.metrics["latency_ms"].tolist() == [[[0.25], [0.5]], [[1e-3], [0.125]]]


def test_columns_in_any_order_and_quotes(small):
    lines = SMALL.replace("layer,w_bits,a_bits,latency_ms", "a_bits,layer,w_bits,latency_ms")
    lines = lines.replace("conv,8,8,", '8,"conv",8,').replace("conv,4,8,", '8,"conv",4,')
    lines = lines.replace("fc,8,8,", "8,fc,8,").replace("fc,4,8,", "8,fc,4,")
    expected = read_csv(small)
    small.write_text(lines)
    assert_equal(read_csv(small), expected)


def padded(text: str, width: int = 3) -> str:
    """Rows as long as the widest, as spreadsheets save them; the notes above stand in the first cell."""
    return "".join(line + "," * (width - line.count(",")) + "\r\n" for line in text.splitlines())


NAMES = "layer,w_bits,a_bits,latency_ms"
SPREADSHEETS = {
    "a mark at the start": lambda text: "\ufeff" + text,
    "ends of lines of Windows": lambda text: text.replace("\n", "\r\n"),
    "ends of lines of old Macs": lambda text: text.replace("\n", "\r"),
    "padded rows": padded,
    "padded rows, notes in quotes": lambda text: padded(text.replace("# hardware: mine", '"# hardware: mine"')),
    "blank rows": lambda text: padded(text + ",,,\n\n , ,,\n,,,\n"),
    "a blank column": lambda text: padded(text, 4),
    "a blank column in the middle": lambda text: text.replace("8,8,", "8,,8,").replace("4,8,", "4,,8,").replace(
        "w_bits,", "w_bits,,"
    ),
    "cells in quotes": lambda text: "".join(
        line if line[:1] in "#\n" else ",".join(f'"{cell}"' for cell in line.split(",")) + "\n"
        for line in text.replace("\n", "\n\0").split("\0") if line
    ),
    "blanks after commas": lambda text: text.replace(",", ", ").replace("conv,", '"conv",').replace("fc", "\u00a0fc "),
    "widths as floats": lambda text: text.replace(",8,8,", ",8.0,8.0,").replace(",4,8,", ",4.00,8,"),
    "names in capitals": lambda text: text.replace(NAMES, "Layer,W bits,A_BITS, Latency_ms"),
    "keys in capitals": lambda text: text.replace("# hardware", "#Hardware"),
    "the separator told": lambda text: "sep=,\n" + text,
    "another separator told": lambda text: '"sep=|",,\n' + text.replace(",", "|"),
    "tabs": lambda text: text.replace(",", "\t"),
    "semicolons": lambda text: text.replace(",", ";"),
    "semicolons and decimal commas": lambda text: text.replace(",", ";").replace("0.", "0,").replace("1e-3", "1,0E-03"),
    "decimal commas in quotes": lambda text: text.replace("0.5", '"0,5"').replace("0.25", '"0,25"').replace(
        "0.125", '"0,125"'
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPREADSHEETS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_what_spreadsheets_make_of_a_csv(small, name, encoding):
    expected = read_csv(small)
    small.write_bytes(SPREADSHEETS[name](SMALL).encode(encoding))
    assert_equal(read_csv(small), expected)


def test_decimal_commas_of_three_digits(small):
    """0,125 cannot be thousands, so 1,234 beside it is no 1234 either."""
    small.write_text(SMALL.replace(",", ";").replace("0.5", "1,234").replace("0.25", "0,250").replace("0.125", "2"))
    assert read_csv(small).metrics["latency_ms"].tolist() == [[[0.25], [1.234]], [[1e-3], [2.0]]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["1,234", "5,678"], "row 6: latency_ms='1,234' may be 1.234 or 1234; save the file with commas between cells"),
        (["1.234", "5.678"], "row 6: latency_ms='1.234' may be 1.234 or 1234"),
        (["1.234", "0,5"], "has numbers with a comma (latency_ms='0,5' in row 7) and with a point (latency_ms='1.234'"),
        (["1.234,5", "0,5"], "row 6: latency_ms='1.234,5' has marks between thousands; save the column without them"),
        (["1,234,567", "1"], "'1,234,567' has marks between thousands"),
        (["1.234.567", "1"], "'1.234.567' has marks between thousands"),
        (["1 234", "1"], "'1 234' has marks between thousands"),
        (["1\u202f234,5", "1"], "has marks between thousands"),
        (["1'234.5", "1"], "has marks between thousands"),
        (["03. Apr", "1"], "'03. Apr' is no number"),
        (["1_000", "1"], "'1_000' is no number"),
        (["0,5 ms", "1"], "'0,5 ms' is no number"),
        (["#DIV/0!", "1"], "'#DIV/0!' is no number"),
        (["٣", "1"], "is no number"),
    ],
)
def test_numbers_that_may_be_two_are_refused(small, rows, said):
    head = SMALL[: SMALL.index("\n\n") + 1] + NAMES.replace(",", ";")
    small.write_text(head + "".join(f"\nconv;{width};8;{number}" for width, number in zip((4, 8), rows, strict=True)))
    assert said in error_of(small)


def test_thousands_in_quotes_are_refused(small):
    for number, said in (
        ("1,234", "with a comma (latency_ms='1,234' in row 7) and with a point"),
        ("1,234.5", "marks"),
    ):
        small.write_text(SMALL.replace("0.5", f'"{number}"'))
        assert said in error_of(small)


def test_utf_16_without_a_mark(small):
    small.write_bytes(SMALL.encode("utf-16-le"))
    assert "NUL characters, as UTF-16 does without a mark at its start" in error_of(small)


def test_notes_that_a_spreadsheet_split_at_their_commas(table, tmp_path):
    """Each part of a note is in a cell of its own, and those that hold quotes are quoted."""
    path = tmp_path / "costs.csv"
    known = replace(
        table,
        limits={"size": 60e3, "ram": 8e3},
        hardware='a, 12" board',
        provenance={"device": 'x, "y",z', "options": "a, b,"},
    )
    write_csv(known, path)
    assert_equal(read_csv(path), known)
    for mark in (",", ";"):
        with path.open(newline="") as file:
            rows = [line.rstrip("\n").split(",") if line[0] == "#" else next(csv.reader([line])) for line in file]
        with (tmp_path / "saved.csv").open("w", newline="") as file:
            writer = csv.writer(file, delimiter=mark)
            writer.writerows([*row, *[""] * (len(rows[-1]) - len(row))] for row in rows)
        saved = read_csv(tmp_path / "saved.csv")
        assert_equal(replace(saved, hardware=known.hardware), known)
        assert saved.hardware == known.hardware.replace(",", mark)


def test_layers_with_blanks_around_their_names_are_not_written(table, tmp_path):
    with pytest.raises(HardwareError, match="layer ' a' has blanks around its name, which CSV loses"):
        write_csv(replace(table, layers=(" a", *table.layers[1:])), tmp_path / "costs.csv")
    assert not list(tmp_path.iterdir())


def test_pairs_without_rows_are_illegal(small):
    small.write_text(SMALL + "conv,16,16,1\nfc,16,16,1\n")
    table = read_csv(small)
    assert [str((pair.w_bits, pair.a_bits)) for pair in table.pairs] == ["(4, 8)", "(8, 8)", "(16, 16)"]
    assert np.isinf(table.metrics["latency_ms"][:, 2, 0]).all()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("# hardware: mine\n", "", "does not say the hardware; add a line such as '# hardware: edge'"),
        ("# batch", "# bacth", "cannot read the line '# bacth: 4' (did you mean 'batch'?)"),
        ("# batch: 4", "# batch: four", "batch: 'four' is not a whole number"),
        ("# batch: 4", "# batch: 4\n# batch: 5", "has two lines '# batch: …'"),
        ("# batch: 4", "# batch: 0", "batch=0"),
        ("# batch: 4", "# batch:", "cannot read the line '# batch:'"),
        ("measured", "guessed", "origin='guessed'"),
        ("# batch: 4", '# batch: 4\n# limits: {"flash": 1}', "limit of 'flash': unknown; known: latency, energy, size"),
        (
            "# batch: 4",
            '# batch: 4\n# limits: {"size": "60kB"}',
            "limit of 'size' is '60kB': must be a positive number of",
        ),
        ("# batch: 4", '# batch: 4\n# limits: {"bops": -1}', "limit of 'bops' is -1: must be a positive number"),
        (
            "# batch: 4",
            '# batch: 4\n# limit: {"size": 1}',
            "cannot read the line '# limit: {\"size\": 1}' (did you mean",
        ),
        ("kernels 1.2", '"kernels', "broken JSON"),
        ("latency_ms", "latency_us", "column 'latency_us': a cost table keeps latency in ms, in the column 'latency"),
        ("latency_ms", "Latency", "keeps latency in ms"),
        ("latency_ms", "size_kB", "keeps size in B, in the column 'size_bytes'"),
        ("latency_ms", "lat_ms", "column 'lat_ms' is unknown (did you mean 'latency_ms'?)"),
        ("a_bits,latency_ms", "a_bits,a_bits", "has two columns 'a_bits'"),
        ("w_bits", "bits", "column 'bits' is unknown (did you mean 'w_bits'?)"),
        ("fc,4,8,1e-3\n", "", "has no row for layer 'fc' at w_bits=4, a_bits=8"),
        ("fc,4,8,1e-3", "fc,8,8,1e-3", "has two rows for layer 'fc' at w_bits=8, a_bits=8"),
        ("fc,4,8,1e-3", "fc,4,8,", "latency_ms=nan for layer 'fc' at w_bits=4, a_bits=8"),
        ("fc,4,8,1e-3", "fc,4,8,nan", "latency_ms=nan for layer 'fc'"),
        ("fc,4,8,1e-3", "fc,4,8,-1", "latency_ms=-1.0 for layer 'fc'"),
        ("fc,4,8,1e-3", "fc,4,8,inf", "latency_ms=inf for layer 'fc' at w_bits=4, a_bits=8: a pair of widths that"),
        ("fc,4,8,1e-3", "fc,4,8,fast", "row 10: latency_ms='fast' is no number"),
        ("fc,4,8,1e-3", "fc,4.5,8,1", "row 10: w_bits is 4.5, but widths are 1, 2"),
        ("fc,4,8,1e-3", "fc,,8,1", "row 10: w_bits is empty, but widths are 1, 2"),
        ("fc,4,8,1e-3", "fc,4,-,1", "row 10: a_bits='-' is no number"),
        (
            "fc,4,8,1e-3",
            "fc,4,,1",
            "a_bits is empty, which is floating point, for layer 'fc' at w_bits=4, but 8 elsewhere",
        ),
        ("fc,4,8,1e-3", ",4,8,1", "row 10: layer is empty; write its name in every row"),
        ("fc,4,8,1e-3", "fc,4,8", "row 10 has 3 cells for 4 columns"),
        ("fc,4,8,1e-3", "fc,4,8,0,25", "row 10 has 5 cells for 4 columns; put a cell that holds"),
        ("fc,4,8,1e-3", '"fc,4,8,1', "cannot be read as CSV: row 10: unexpected end of data"),
        (",8,", ",9,", "row 7: w_bits is 9, but widths are 1, 2"),
        ("a_bits,latency", "inputs,latency", "column 'inputs' is unknown"),
    ],
)
def test_a_wrong_csv_is_refused_in_one_line(small, old, new, said):
    assert old in SMALL
    small.write_text(SMALL.replace(old, new))
    assert said in error_of(small)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", b"PAR1", b"# hardware: edge\n"])
def test_what_is_no_csv(small, content):
    small.write_bytes(content)
    error_of(small)


# HAQ's arrays


@pytest.fixture
def cycles(tmp_path, layers):
    """Cycles that tell layer, w_bits and a_bits apart."""
    array = np.fromfunction(lambda layer, w, a: 10_000 * (layer + 1) + 100 * (w + 1) + a + 1, (len(layers), 8, 8))
    np.save(tmp_path / "cycles.npy", array.astype(np.int64))
    return tmp_path / "cycles.npy"


def test_cycles_become_milliseconds(cycles, layers):
    table = read_npy(cycles, layers, clock_mhz=200, batch=4, hardware="mine")
    assert (table.hardware, table.batch, table.layers[2], table.origin) == ("mine", 4, "fc", "modelled")
    assert table.metrics["latency_ms"][2, 3, 5] == pytest.approx(30_406 / 200e6 * 1e3)  # layer 2, w_bits 4, a_bits 6
    for field, count in (("size_bytes", size_bytes), ("bops", bops)):
        assert table.metrics[field][2, 3, 5] == count(layers[2], LayerBits(4, 6))
    assert read_npy(cycles, layers, clock_mhz=200).hardware == "cycles"


def test_an_array_comes_back(cycles, layers):
    table = read_npy(cycles, layers, clock_mhz=166.7)
    write_npy(table, cycles.with_name("back.npy"), clock_mhz=166.7)
    assert np.load(cycles.with_name("back.npy")) == pytest.approx(np.load(cycles))


def test_an_array_needs_the_number_of_layers(cycles, layers):
    message = error_of(cycles, layers=layers[:2], clock_mhz=200)
    assert "has 3 layers, but the model has 2" in message


def test_an_array_needs_clock_and_layers(cycles, layers):
    assert "--clock-mhz" in error_of(cycles, layers=layers)
    assert "--model" in error_of(cycles, clock_mhz=200)
    for clock in (0, -1, float("nan"), float("inf")):
        with pytest.raises(HardwareError, match="must be a positive number"):
            read_npy(cycles, layers, clock)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda a: a[0], "has shape (8, 8), but HAQ's arrays have layers x 8 x 8"),
        (lambda a: a[:, :7], "has shape (3, 7, 8)"),
        (lambda a: np.where(a == 20_304, np.nan, a), "nan cycles for layer 'conv2.dw' at w_bits=3, a_bits=4"),
        (lambda a: np.where(a == 20_304, np.inf, a), "inf cycles for layer 'conv2.dw'"),
        (lambda a: -a, "-10101.0 cycles for layer 'conv1' at w_bits=1, a_bits=1"),
        (lambda a: a > 0, "holds bool"),
        (lambda a: a.astype(complex), "holds complex128"),
        (lambda a: a.astype(object), "without pickle"),
    ],
)
def test_a_wrong_array_is_refused(cycles, layers, spoil, said):
    np.save(cycles, spoil(np.load(cycles)))
    assert said in error_of(cycles, layers=layers, clock_mhz=200)


def test_a_damaged_array(cycles, layers):
    whole = cycles.read_bytes()
    for content in (b"", b"\x93NUMPY", whole[:-8]):
        cycles.write_bytes(content)
        assert "cannot read" in error_of(cycles, layers=layers, clock_mhz=200)


def test_an_array_holds_every_pair_of_1_to_8_bits_and_nothing_else(table, layers, tmp_path):
    for other, said in ((table, "every pair of 1 to 8 bits"), (CostTable.footprint(layers, (8,)), "hold cycles")):
        with pytest.raises(HardwareError, match=said):
            write_npy(other, tmp_path / "out.npy", clock_mhz=200)
    assert not list(tmp_path.iterdir())


# All forms


@pytest.mark.parametrize("name", ["costs.parquet", "costs.csv", "COSTS.CSV"])
def test_the_suffix_says_the_form(table, tmp_path, name):
    save_table(replace(table, provenance={"device": "a: # b\n", "date": "2020-02-02"}), tmp_path / name)
    assert_equal(load_table(tmp_path / name), replace(table, provenance={"device": "a: # b\n", "date": "2020-02-02"}))


def test_mistakes_with_files(table, tmp_path):
    for name in ("none.parquet", "none.csv", "none.npy"):
        assert "does not exist" in error_of(tmp_path / name, layers=[], clock_mhz=1.0)
    assert "must end in .parquet, .csv, .npy" in error_of(tmp_path / "costs.xlsx")
    with pytest.raises(HardwareError, match="must end in"):
        save_table(table, tmp_path / "costs.xlsx")
    with pytest.raises(HardwareError, match="give --clock-mhz"):
        save_table(table, tmp_path / "costs.npy")
    (tmp_path / "file").touch()
    with pytest.raises(HardwareError, match="cannot write"):
        save_table(table, tmp_path / "file" / "costs.csv")
