"""Files as people have them: what is read, what is set aside and why, what is guessed; and the laws of the split."""

import csv
import io
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tritune.compression.kinds.texts import understood
from tritune.compression.reading import check_few, read_messy
from tritune.errors import TrituneError
from tritune.tasks.data.splitting import DEV, TEST, TRAIN, Example, normalized, split

ROWS = [{"text": f"the dog number {i}", "label": "good, really" if i % 3 else "bad"} for i in range(30)]


def table(rows: list[dict], delimiter: str = ",", ends: str = "\n") -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator=ends)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def read(folder: Path, content: str | bytes, name: str = "rows.csv", **options):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_messy(path, **options)


# bytes of the same rows, and what they are taken for
FORMS = {
    "plain": (table(ROWS).encode(), "utf-8", "comma"),
    "bom": (table(ROWS).encode("utf-8-sig"), "utf-8", "comma"),
    "crlf": (table(ROWS, ends="\r\n").encode(), "utf-8", "comma"),
    "cr": (table(ROWS, ends="\r").encode(), "utf-8", "comma"),
    "semicolons": (table(ROWS, ";").encode(), "utf-8", "semicolon"),
    "tabs": (table(ROWS, "\t").encode(), "utf-8", "tab"),
    "bars": (table(ROWS, "|").encode(), "utf-8", "bar"),
    "utf16": (table(ROWS).encode("utf-16"), "utf-16", "comma"),
    "utf16_without_a_mark": (table(ROWS).encode("utf-16-be"), "utf-16-be", "comma"),
    "no_last_line_end": (table(ROWS).encode().rstrip(b"\n"), "utf-8", "comma"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, form):
    content, encoding, delimiter = FORMS[form]
    reading = read(tmp_path, content)
    assert [row.cells for row in reading.rows] == ROWS
    assert (reading.encoding, reading.delimiter, reading.remarks) == (encoding, delimiter, [])
    assert [row.line for row in reading.rows] == list(range(2, 32))


def test_latin_1_is_read_and_said(tmp_path):
    reading = read(tmp_path, "text,label\nGrüße – 5 €,ä\n".encode("windows-1252"))
    assert reading.rows[0].cells == {"text": "Grüße – 5 €", "label": "ä"}
    assert "not UTF-8" in reading.notes[0]


def test_excel_names_the_delimiter(tmp_path):
    reading = read(tmp_path, "sep=;\n" + table(ROWS, ";"))
    assert [row.cells for row in reading.rows] == ROWS and reading.remarks == []
    assert reading.columns == ["text", "label"] and reading.rows[0].line == 3


def test_a_stray_zero_does_not_make_it_utf_16(tmp_path):
    reading = read(tmp_path, table(ROWS).replace("dog number 3", "dog \0number 3"))
    assert reading.encoding == "utf-8" and len(reading.rows) == len(ROWS)
    with pytest.raises(TrituneError, match="not a text file"):
        read(tmp_path, bytes(range(256)) * 20)


def test_columns_that_nobody_named(tmp_path):
    """As Excel leaves empty ones, pandas writes an index, and people forget a name."""
    empty = read(tmp_path, "text,label,,\n" + "".join(f"t {i},{i % 2},,\n" for i in range(9)))
    assert empty.columns == ["text", "label"] and len(empty.rows) == 9
    index = read(tmp_path, ",text\n" + "".join(f"{i},some text {i}\n" for i in range(9)))
    assert index.columns == ["text"] and "index" in index.notes[0]
    filled = read(tmp_path, ",text\n" + "".join(f"{'ab'[i % 2]},some text {i}\n" for i in range(9)))
    assert filled.columns == ["column1", "text"] and filled.notes == ["a column without a name is called column1"]
    counted = read(tmp_path, "0,1\n" + "".join(f"some text {i},{'ab'[i % 2]}\n" for i in range(9)))
    assert counted.columns == ["0", "1"] and len(counted.rows) == 9


def test_unicode_and_quotes_survive(tmp_path):
    texts = ["two\nlines", 'she said "no"', "a \U0001f600 b", "x\u2028y", "a,b;c\td|e", "'", "é\u0301"]
    rows = [{"text": text, "label": str(i % 2)} for i, text in enumerate(texts)]
    for delimiter in ",;\t":
        reading = read(tmp_path, table(rows, delimiter))
        assert [row.cells for row in reading.rows] == rows and reading.remarks == []
    assert reading.rows[1].line == 4  # the first text takes two lines


def test_tabs_without_quoting(tmp_path):
    reading = read(tmp_path, 'text\tlabel\n"open\t1\nfine\t0\nclosed"\t1\nlast\t0\n', "rows.tsv")
    assert [row.cells["text"] for row in reading.rows] == ['"open', "fine", 'closed"', "last"]


def test_a_broken_row_costs_one_row(tmp_path):
    lines = table(ROWS).splitlines()
    lines[5] = '"never closed,bad'
    lines[9] = "a,b,c"
    lines[12] = ""
    lines[15] = "short"
    lines[20] = ",,"
    reading = read(tmp_path, "\n".join(lines))
    assert [(remark.line, remark.reason[:20]) for remark in reading.remarks] == [
        (6, "a quote is not close"),
        (10, "3 fields, the header"),
        (13, "blank"),
        (16, "1 fields, the header"),
        (21, "blank"),
    ]
    assert [row.cells for row in reading.rows] == [ROWS[i] for i in range(30) if i + 2 not in (6, 10, 13, 16, 21)]


def test_a_line_may_end_with_a_delimiter(tmp_path):
    reading = read(tmp_path, "text,label\n" + "".join(f"t {i},{i % 2},\n" for i in range(9)))
    assert len(reading.rows) == 9 and reading.remarks == []


def test_a_missing_header_is_noticed(tmp_path):
    reading = read(tmp_path, table(ROWS).partition("\n")[2])
    assert reading.columns == ["column1", "column2"] and len(reading.rows) == 30
    assert "no header" in reading.notes[0]
    found = understood(reading)
    assert (found.text_columns, found.label_column) == (("column1",), "column2")
    assert read(tmp_path, table(ROWS).partition("\n")[2], header=True).columns == ["the dog number 0", "bad"]


def test_the_index_of_pandas_is_no_column(tmp_path):
    rows = [{"": i} | row for i, row in enumerate(ROWS)]
    reading = read(tmp_path, table(rows))
    assert reading.columns == ["text", "label"] and [row.cells for row in reading.rows] == ROWS
    assert "index" in reading.notes[0]


def test_columns_are_found_wherever_they_stand(tmp_path):
    rows = [{"id": i, "Category": row["label"], "body": row["text"], "short": "x y"} for i, row in enumerate(ROWS)]
    found = understood(read(tmp_path, table(rows)))
    assert (found.text_columns, found.label_column) == (("body",), "Category")
    assert found.labels == {"bad": 10, "good, really": 20}
    assert any("the text is 'body'" in note for note in found.notes)
    pair = understood(read(tmp_path, table(rows)), ["body", "short"], "Category")
    assert pair.examples[3].texts == ("the dog number 3", "x y")


def labelled(labels: list, folder: Path, texts: list[str] | None = None):
    texts = texts or [f"text {i} of some words" for i in range(len(labels))]
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    return understood(read(folder, table(rows)))


def test_labels_as_numbers_words_and_scores(tmp_path):
    assert labelled([10, 9, 9, 2] * 5, tmp_path).labels == {"2": 5, "9": 10, "10": 5}
    assert labelled(["0.0", "1.0"] * 5, tmp_path).labels == {"0": 5, "1": 5}
    assert labelled(["yes", " no"] * 5, tmp_path).labels == {"no": 5, "yes": 5}
    scores = labelled([0.5, 1, 2.25, "-3"] * 5, tmp_path)
    assert scores.labels is None and [e.label for e in scores.examples[:4]] == [0.5, 1.0, 2.25, -3.0]
    # An infinite number is no fraction that would make scores of classes.
    assert labelled([*[1, 2] * 9, "inf"], tmp_path).labels.keys() >= {"1", "2"}
    assert labelled(["a", "b"] * 5, tmp_path).metric is None
    assert labelled(["a"] * 9 + ["b"] * 2, tmp_path).metric == "macro_f1"


def test_a_column_of_scores_is_the_label(tmp_path):
    rows = [{"id": i, "review": row["text"], "stars": i / 4} for i, row in enumerate(ROWS)]
    found = understood(read(tmp_path, table(rows)))
    assert (found.text_columns, found.label_column, found.problem) == (("review",), "stars", "regression")


def test_several_labels_of_a_row(tmp_path):
    """Joined by bars, as lists and as columns of 0 and 1: the same rows."""
    wanted = [tuple(name for name, every in (("big", 2), ("red", 3), ("sad", 5)) if i % every == 0) for i in range(30)]
    texts = [{"text": f"text {i} of some words"} for i in range(30)]
    bars = [row | {"label": " | ".join(names)} for row, names in zip(texts, wanted, strict=True)]
    lists = [row | {"label": [*names, *names[:1]]} for row, names in zip(texts, wanted, strict=True)]
    flags = [row | {n: str(int(n in of)) for n in ("big", "red", "sad")} for row, of in zip(texts, wanted, strict=True)]
    forms = (
        (understood(read(tmp_path, table(bars)))),
        (understood(read(tmp_path, "\n".join(map(json.dumps, lists)), "rows.jsonl"))),
        (understood(read(tmp_path, table(flags)), label="big, red,sad")),
    )
    for found in forms:
        assert found.problem == "multi_label" and found.metric is None and found.remarks == []
        assert [example.label for example in found.examples] == wanted
        assert found.labels == {"big": 15, "red": 10, "sad": 6}
    assert any("8 rows have more than one label, 8 have none" in line for line in forms[0].described())
    sides = split(forms[0].examples, 0).rows
    assert all({name for row in side for name in row.label} == {"big", "red", "sad"} for side in sides.values())
    flags[3]["red"], lists[4]["label"] = "perhaps", [{"no": "name"}]
    for odd in (
        understood(read(tmp_path, table(flags)), label="big,red,sad"),
        understood(read(tmp_path, "\n".join(map(json.dumps, lists)), "rows.jsonl")),
    ):
        assert len(odd.examples) == 29 and "cannot be read" in odd.remarks[0].reason


def test_json_holds_nothing_where_there_is_null(tmp_path):
    lines = [json.dumps({"text": None if i == 3 else f"text {i} x", "label": i % 2 or None}) for i in range(30)]
    found = understood(read(tmp_path, "\n".join(lines).replace("null}", "7}"), "rows.jsonl"))
    assert [(remark.line, remark.reason) for remark in found.remarks] == [(4, "no text in 'text'")]
    assert found.labels == {"1": 14, "7": 15}


def test_rows_without_text_or_label_are_named(tmp_path):
    found = labelled(["a", "b", "", "nan", "b"] * 4, tmp_path, ["", *(f"text {i} x" for i in range(19))])
    reasons = [(remark.line, remark.reason) for remark in found.remarks]
    assert reasons[:3] == [(2, "no text in 'text'"), (4, "no label in 'label'"), (5, "no label in 'label' but 'nan'")]
    with pytest.raises(TrituneError, match=r"rows.csv: 9 of 20 rows cannot be used, .* \(1\): line 2: no text"):
        check_few(found.remarks, len(found.examples), None, "rows.csv")
    check_few(found.remarks, len(found.examples), 9, "rows.csv")


def test_what_is_no_text_is_no_text(tmp_path):
    """Lists and objects were taken by what Python writes of them."""
    rows = [{"text": f"text {i} x", "label": "ab"[i % 2]} for i in range(20)]
    rows[3]["text"], rows[7]["text"] = {"en": "a text"}, ["a", "text"]
    found = understood(read(tmp_path, "\n".join(map(json.dumps, rows)), "rows.jsonl"))
    assert [(remark.line, remark.reason[:24]) for remark in found.remarks] == [
        (4, "what 'text' holds is no "),
        (8, "what 'text' holds is no "),
    ]
    for row in rows:
        row["text"] = [row["text"]]
    with pytest.raises(TrituneError, match="no row can be used; line 1: what 'text' holds is no text"):
        understood(read(tmp_path, json.dumps(rows), "rows.json"))


def test_scores_with_decimal_commas(tmp_path):
    found = labelled([f"{i % 7 / 4}".replace(".", ",") for i in range(20)], tmp_path)
    assert [example.label for example in found.examples] == [i % 7 / 4 for i in range(20)]
    assert "the scores have decimal commas: 0,0 is 0" in found.notes


def test_labels_are_shown_on_one_line(tmp_path):
    found = labelled(["two\nlines", "\x1b[31mred", "long " * 100] * 5, tmp_path)
    (line,) = (line for line in found.described() if line.startswith("label: "))
    assert line.isprintable() and len(line) < 200 and "two lines 5" in line


def test_one_text_with_two_labels_is_reported_and_kept(tmp_path):
    found = labelled(["a", "b"] * 6, tmp_path, [*(f"text {i} x" for i in range(10)), "same", "same"])
    assert [(remark.line, remark.kept) for remark in found.remarks] == [(12, True), (13, True)]
    assert "'a' in line 12" in found.remarks[1].reason and len(found.examples) == 12


REFUSED = {
    "empty": ("", "holds no rows"),
    "blank": ("\n \n", "holds no rows"),
    "header_only": ("text,label\n", "holds a header and no rows"),
    "two_rows": ("text,label\nx y,a\nz w,b\n", "2 rows can be used; at least 10"),
    "one_class": (table([row | {"label": "a"} for row in ROWS]), "the only label is 'a'"),
    "one_score": (table([row | {"label": 0.5} for row in ROWS]), "every row has the same label"),
    "ids_as_labels": (table([row | {"label": f"u{i}"} for i, row in enumerate(ROWS)]), "too many for classes"),
    "no_label": (table([{"a": f"x {i}", "b": f"y {i}"} for i in range(20)]), "say with --label-column which of"),
    "no_text": (table([{"a": i, "label": i % 2} for i in range(20)]), "'a' holds numbers .0.; name the text"),
    "twice": ("text,text,label\n" + "x,y,z\n" * 20, "'text' more than once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    content, message = REFUSED[name]
    with pytest.raises(TrituneError, match=message):
        understood(read(tmp_path, content))


def test_other_files_and_none(tmp_path):
    with pytest.raises(TrituneError, match="no such file"):
        read_messy(tmp_path / "none.csv")
    with pytest.raises(TrituneError, match="unknown kind of file"):
        read(tmp_path, "x", "rows.doc")
    with pytest.raises(TrituneError, match="no column 'nope'"):
        understood(read(tmp_path, table(ROWS)), label="nope")
    assert len(read(tmp_path, '{"text": "x", "label": 1}\n' * 4, "rows.jsonl").rows) == 4


def examples(count: int, seed: int = 0, classes: str = "aaaaaaaab", **cells) -> list[Example]:
    draw = random.Random(seed)
    return [
        Example(
            i,
            (f"{draw.choice(['The dog', 'a cat'])} {draw.randrange(count)}",),
            draw.choice(classes),
            {name: values(i) for name, values in cells.items()},
        )
        for i in range(count)
    ]


def keys(rows: list[Example]) -> set[str]:
    return {normalized(row.texts[0]) for row in rows}


@pytest.mark.parametrize("seed", range(5))
def test_no_duplicate_on_two_sides(seed):
    rows = examples(200, seed)
    rows += [Example(1000 + i, (f"  {rows[i].texts[0].upper()}!",), "a", {}) for i in range(40)]
    parts = split(rows, seed).rows
    assert sorted(row.line for side in parts.values() for row in side) == sorted(row.line for row in rows)
    assert not (keys(parts[TRAIN]) & keys(parts[TEST]) or keys(parts[TRAIN]) & keys(parts[DEV]))
    assert not keys(parts[DEV]) & keys(parts[TEST])
    assert split(rows, seed).rows == parts and split(rows, seed + 1).rows != parts


def test_shares_and_every_class_on_every_side():
    rows = [Example(i, (f"text {i}",), "rare" if i < 3 else "ab"[i % 2], {}) for i in range(1000)]
    parts = split(rows, 1).rows
    counts = {side: Counter(row.label for row in of) for side, of in parts.items()}
    assert all(set(count) == {"a", "b", "rare"} for count in counts.values())
    assert len(parts[TEST]) == pytest.approx(200, abs=3) and len(parts[DEV]) == pytest.approx(100, abs=3)
    assert abs(counts[TEST]["a"] - counts[TEST]["b"]) <= 2
    assert "rare" in Counter(row.label for row in split(rows[2:], 1).rows[TRAIN])  # a class of one is learnt


def test_groups_stay_whole_and_join_with_duplicates():
    rows = [Example(i, (f"text {i % 297}",), "ab"[i % 2], {"customer": f"c{i % 30}"}) for i in range(300)]
    parts = split(rows, 0, group="customer").rows
    of = {side: {row.cells["customer"] for row in each} for side, each in parts.items()}
    assert not (of[TRAIN] & of[TEST] or of[TRAIN] & of[DEV] or of[DEV] & of[TEST])
    assert len({side for side, each in parts.items() for row in each if normalized(row.texts[0]) == "text 0"}) == 1
    zero = [Example(i, (f"text {i}",), "ab"[i % 2], {"customer": i % 6}) for i in range(300)]
    homes = {
        side
        for side, each in split(zero, 0, group="customer").rows.items()
        for row in each
        if not row.cells["customer"]
    }
    assert len(homes) == 1, "0 is a group like any other"
    with pytest.raises(TrituneError, match="too few groups"):
        split(examples(20, customer=lambda i: "one"), 0, group="customer")
    with pytest.raises(TrituneError, match="--group: no column 'shop'"):
        split(rows, 0, group="shop")


def test_the_newest_rows_are_the_test_part():
    rows = examples(200, day=lambda i: f"2024-{1 + (i * 7) % 12:02}-{1 + i % 28:02}")
    parts = split(rows, 0, time="day")
    newest = [max(row.cells["day"] for row in parts.rows[side]) for side in (TRAIN, DEV)]
    oldest = [min(row.cells["day"] for row in parts.rows[side]) for side in (DEV, TEST)]
    assert newest[0] <= oldest[0] and newest[1] <= oldest[1]
    assert not keys(parts.rows[TRAIN]) & keys(parts.rows[TEST])
    assert len(parts.left_out) + sum(map(len, parts.rows.values())) == 200
    with pytest.raises(TrituneError, match="line 3: 'day' is no time: nan"):
        split(examples(20, day=lambda i: float("nan") if i == 3 else i), 0, time="day")
    with pytest.raises(TrituneError, match="line 0: 'day' is no time: 'soon'"):
        split(examples(20, day=lambda i: "soon"), 0, time="day")


def test_scores_are_stratified():
    rows = [Example(i, (f"text {i}",), i / 7, {}) for i in range(100)]
    parts = split(rows, 0).rows
    assert len(parts[TEST]) == 20 and len(parts[DEV]) == 10
    assert {int(row.line // 20) for row in parts[TEST]} == set(range(5))


def dated(*dates: str) -> list[Example]:
    return [Example(i + 2, (f"text {i} x",), "ab"[i % 2], {"day": date}) for i, date in enumerate(dates)]


def test_dates_with_their_day_first():
    """05.02. is in February; what 05/02 is only the others tell."""
    for sign in "./":
        dates = ["25/12/2023", "05/02/2024", "04/03/2024", "2024-01-03", *(f"{day}/01/2023" for day in range(10, 17))]
        parts = split(dated(*(date.replace("/", sign) for date in dates)), 0, time="day")
        assert [row.line for row in parts.rows[TEST]] == [3, 4] and [row.line for row in parts.rows[DEV]] == [5]
    american = split(dated(*(f"{month:02d}/{16 - month}/2024" for month in range(1, 13))), 0, time="day")
    assert [row.line for row in american.rows[TEST]] == [12, 13]
    for odd, reason in (("05/02/2024", "the day or the month first"), ("13/01/2024", "others with the month")):
        with pytest.raises(TrituneError, match=reason):
            split(dated(*["05/02/2024"] * 9, *["01/13/2024"] * (odd != "05/02/2024"), odd), 0, time="day")


def test_groups_of_earlier_parts_may_leave_none():
    rows = [Example(i + 2, (f"text {i} x",), "ab"[i % 2], {"day": str(i), "who": str(i % 2)}) for i in range(20)]
    with pytest.raises(TrituneError, match="the group of each is in an earlier part"):
        split(rows, 0, time="day", group="who")
