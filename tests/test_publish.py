import csv
import html
import io
import json
import re
import shutil
import unicodedata
from html.parser import HTMLParser

import jsonschema
import pytest
from bundles_factory import make_bundle, make_failed

from harness.documents import canonical, digest
from harness.errors import StorageError
from harness.leaderboard.bundle import bundle_files, write_bundle
from harness.leaderboard.publish import check_publication, publish, stale_files, write_publication
from harness.text import safe_text

FILES = [
    *("LEADERBOARD.md", "leaderboard.csv", "leaderboard.json", "leaderboard.schema.json"),
    *("leaderboard.tex", "index.html"),
]
SMALL = {"classes": ("ants", "bees"), "n": 20, "seeds": (1,), "epochs": 2}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A folder of bundles on two data sets, not to be changed."""
    folder = tmp_path_factory.mktemp("bundles")
    for dataset, classes in (("trashnet", 6), ("hymenoptera", 2)):
        for draw, backbone in enumerate(("resnet18.a1_in1k", "convnext_atto.d2_in1k")):
            quality = 0.9 - 0.3 * draw
            bundle = make_bundle(
                dataset=dataset,
                classes=classes,
                n=60,
                backbone=backbone,
                draw=draw,
                quality=quality,
                seeds=(1, 2),
            )
            write_bundle(folder, bundle)
    return folder


@pytest.fixture
def records(bundles, tmp_path):
    """A folder of these bundles that can be changed."""
    return shutil.copytree(bundles, tmp_path / "leaderboard" / "records")


@pytest.fixture
def embedded():
    """Return a function that reads the data a page holds."""

    def read(page):
        (held,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
        return json.loads(held)

    return read


def rewritten(path, change):
    """Change the body of a bundle and give it the hash of what it then is."""
    body = json.loads(path.read_text(encoding="utf-8"))
    del body["sha256"]
    change(body)
    path.write_text(canonical({**body, "sha256": digest(body)}) + "\n", encoding="utf-8")


def test_bundles_alone_give_all_files(bundles):
    made = publish(bundles)
    assert list(made.files) == FILES
    assert (made.runs, len(made.boards), list(made.rejected)) == (4, 2, [])
    for name in ("LEADERBOARD.md", "leaderboard.csv", "leaderboard.json", "leaderboard.tex", "index.html"):
        for word in ("trashnet", "hymenoptera"):
            assert word in made.files[name]
        assert made.files[name].count("resnet18.a1") or "resnet18.a1\\_in1k" in made.files[name]


def test_the_json_is_of_its_schema(bundles):
    made = publish(bundles)
    schema = json.loads(made.files["leaderboard.schema.json"])
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = json.loads(made.files["leaderboard.json"])
    validator.validate(document)
    document["leaderboards"][0]["rows"][0]["f1"] = "0.9"
    assert not validator.is_valid(document)
    document["leaderboards"][0]["rows"][0] = {"rank": 1}
    assert not validator.is_valid(document)


def test_the_schema_says_what_a_field_is():
    from harness.leaderboard.schema import json_schema

    board = json_schema()["properties"]["leaderboards"]["items"]
    row = board["properties"]["rows"]["items"]
    note = "Macro-F1 in [0, 1], mean over seeds."
    assert row["properties"]["f1"] == {"type": "number", "description": note}
    assert row["properties"]["seconds"]["anyOf"] == [{"type": "number"}, {"type": "null"}]
    assert row["properties"]["f1_interval"]["minItems"] == 2
    assert set(row["required"]) == set(row["properties"])


def test_the_same_bundles_give_the_same_bytes_however_they_came(records, tmp_path):
    other = tmp_path / "other" / "records"
    for number, path in enumerate(reversed(list(bundle_files(records)))):
        target = other / f"folder-{number}" / f"{number}.json"
        target.parent.mkdir(parents=True)
        shutil.copy(path, target)
    shutil.copy(target, other / "folder-0" / "twice.json")
    assert publish(other).files == publish(records).files


def test_several_processes_give_the_same_bytes(records, monkeypatch):
    monkeypatch.setattr("harness.leaderboard.publish.SHARE", 2)
    assert publish(records, jobs=2).files == publish(records).files


def test_written_files_are_fresh_until_a_bundle_comes(records, tmp_path):
    to = tmp_path / "leaderboard"
    made = publish(records)
    with pytest.raises(StorageError, match="stale") as caught:
        check_publication(made, to)
    assert "missing" in caught.value.why
    assert write_publication(made, to) == FILES
    check_publication(publish(records), to)
    assert write_publication(publish(records), to) == []
    write_bundle(records, make_bundle(**SMALL, dataset="new"))
    assert set(stale_files(publish(records), to)) == set(FILES) - {"leaderboard.schema.json"}


@pytest.mark.parametrize("name", FILES)
def test_an_edited_file_is_stale(records, tmp_path, name):
    made = publish(records)
    write_publication(made, tmp_path)
    path = tmp_path / name
    path.write_text(path.read_text(encoding="utf-8").replace("\n", "\r\n", 1), encoding="utf-8", newline="")
    with pytest.raises(StorageError, match="stale") as caught:
        check_publication(made, tmp_path)
    assert name in caught.value.why


def test_no_folder_of_bundles_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="no bundles") as caught:
        publish(tmp_path / "nowhere")
    assert caught.value.fixes


def test_bundles_are_found_at_any_depth_and_reruns_are_none(bundles, records, tmp_path):
    flat = tmp_path / "flat" / "deep" / "er"
    flat.mkdir(parents=True)
    for number, path in enumerate(bundle_files(records)):
        shutil.copy(path, (tmp_path / "flat" if number % 2 else flat) / path.name)
    (tmp_path / "flat" / "reruns").mkdir()
    (tmp_path / "flat" / "reruns" / "1.json").write_text("{}", encoding="utf-8")
    (tmp_path / "flat" / ".git").mkdir()
    (tmp_path / "flat" / ".git" / "1.json").write_text("{}", encoding="utf-8")
    made = publish(tmp_path / "flat")
    assert (made.runs, list(made.rejected)) == (4, [])
    assert made.files == publish(bundles).files


def test_without_a_bundle_nothing_is_written_over_what_was_there(harness_cli, tmp_path):
    (tmp_path / "records" / "petals").mkdir(parents=True)
    (tmp_path / "LEADERBOARD.md").write_text("of last year", encoding="utf-8")
    arguments = ("--records", tmp_path / "records", "--to", tmp_path)
    code, out, err = harness_cli("leaderboard", "publish", *arguments)
    assert (code, out) == (6, "")
    assert "harness leaderboard submit STUDY" in err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["LEADERBOARD.md"]
    assert (tmp_path / "LEADERBOARD.md").read_text(encoding="utf-8") == "of last year"


def test_bundles_that_are_all_broken_give_documents_that_say_so(tmp_path):
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    made = publish(tmp_path)
    assert (made.runs, list(made.boards), len(made.rejected)) == (0, [], 1)
    assert json.loads(made.files["leaderboard.json"])["leaderboards"] == []
    assert "0 runs" in made.files["index.html"]


def test_a_seed_that_failed_counts_on_the_published_board_as_on_one_s_own(tmp_path, embedded):
    bundle = make_failed(make_bundle(**SMALL, dataset="x"), 5)
    write_bundle(tmp_path, bundle)
    made = publish(tmp_path)
    ((row,),) = (board.rows for board in made.boards)
    (board,) = made.boards
    assert (row.seeds, row.failed) == (1, 1)
    assert row.f1 == pytest.approx((bundle.records[0].scores["test"].f1 + board.floor.f1) / 2)
    assert "| 1\\! |" in made.files["LEADERBOARD.md"]
    assert "| 1/2 |" in made.files["LEADERBOARD.md"]
    assert "1! & " in made.files["leaderboard.tex"]
    assert '<td class="n">1!</td>' in made.files["index.html"]
    assert '<td class="n">1/2</td>' in made.files["index.html"]
    (run,) = embedded(made.files["index.html"])["runs"].values()
    assert [seed for seed, *_ in run["seeds"]] == [1, "5, failed"]
    assert run["seeds"][1][3] == round(10_000 * board.floor.f1)


def test_what_no_check_foresaw_takes_out_its_bundle_alone(records, monkeypatch):
    from harness.leaderboard import publish as module

    def summarise(bundle, shared):
        if bundle.records[0].config.backbone == "resnet18.a1_in1k":
            raise OverflowError("int too large to convert to float")
        return before(bundle, shared)

    before = module.summarise_run
    monkeypatch.setattr(module, "summarise_run", summarise)
    made = publish(records)
    assert made.runs == 2
    assert [one.reason for one in made.rejected] == [
        "it cannot be shown: OverflowError('int too large to convert to float')"
    ] * 2


def test_what_no_check_of_a_bundle_foresaw_is_its_verdict(records, monkeypatch):
    def record_problems(record):
        raise IndexError("tuple index out of range")

    monkeypatch.setattr("harness.leaderboard.verify.record_problems", record_problems)
    made = publish(records)
    assert made.runs == 0
    assert {one.reason for one in made.rejected} == {
        "it cannot be checked: IndexError('tuple index out of range')"
    }


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    path.write_text(path.read_text(encoding="utf-8").replace('"adamw"', '"sgdwx"', 1), encoding="utf-8")


def without_predictions(path):
    rewritten(path, lambda body: body.update(answers=[{} for _ in body["answers"]]))


def better_score(path):
    rewritten(path, lambda body: body["records"][0]["scores"]["test"].update(f1=0.999))


def of_newer_schema(path):
    rewritten(path, lambda body: body.update(schema="harness.bundle/99"))


def with_text_for_a_number(path):
    rewritten(path, lambda body: body["records"][0]["config"].update(lr="<script>"))


def without_records(path):
    rewritten(path, lambda body: body.update(records=[], answers=[]))


def not_json(path):
    path.write_bytes(b"\xff\x00\x01")


BROKEN = [
    *(truncate, flip, without_predictions, better_score, of_newer_schema, with_text_for_a_number),
    *(without_records, not_json),
]


@pytest.mark.parametrize("breaks", BROKEN)
def test_a_broken_bundle_is_left_out_with_the_reason_and_stops_nothing(records, breaks):
    path = next(path for path in bundle_files(records) if "trashnet" in str(path))
    breaks(path)
    made = publish(records)
    (rejected,) = made.rejected
    assert made.runs == 3
    assert rejected.file == f"trashnet/{path.name}"
    assert len(rejected.reason) > 10
    assert "Error" not in rejected.reason
    for name in ("LEADERBOARD.md", "index.html"):
        assert path.name in made.files[name]
        assert "Left out" in made.files[name]


def test_the_command_publishes_checks_and_names_what_it_left_out(records, tmp_path, harness_cli):
    to = tmp_path / "leaderboard"
    arguments = ("leaderboard", "publish", "--records", records, "--to", to)
    code, out, err = harness_cli(*arguments, "--check")
    assert (code, out) == (6, "")
    assert "stale" in err
    assert "harness leaderboard publish" in err
    code, out, err = harness_cli(*arguments)
    assert code == 0
    assert out.splitlines() == [str(to / name) for name in FILES]
    assert "4 runs in 2 tables" in err
    code, out, err = harness_cli(*arguments, "--check")
    assert (code, out) == (0, "")
    (records / "trashnet" / "bad\x1b[2J.json").write_text("{", encoding="utf-8")
    code, out, err = harness_cli(*arguments)
    assert code == 3
    assert "left out trashnet/bad␛[2J.json: a bundle cannot be read" in err
    assert harness_cli(*arguments, "--check")[0] == 3


def test_a_run_is_summed_up_for_its_panel(bundles, embedded):
    data = embedded(publish(bundles).files["index.html"])
    (best,) = [run for run in data["runs"].values() if run["ranks"][0] == "1" and run["board"] == "board-1"]
    assert data["boards"]["board-1"]["dataset"] == "trashnet"
    assert dict(zip(data["fields"]["config"], best["config"], strict=True))["backbone"] == "resnet18.a1_in1k"
    assert [seed for seed, *_ in best["seeds"]] == [1, 2]
    assert sum(unpack(best["confusion"]["support"])) == 120
    assert 0 <= best["calibration"][0] <= 10_000
    assert sum(unpack(best["calibration"][1])[::3]) == 120
    name, truth, answered, sure = best["mistakes"][0]
    assert data["shared"][name].startswith("test/class-")
    assert truth != answered
    assert 0 < sure <= 1000


def unpack(text):
    """The inverse of `pack`, as the page has it."""
    from harness.leaderboard.panel import DIGITS

    numbers, number, scale = [], 0, 1
    for sign in text:
        value = DIGITS.index(sign)
        number += value % 32 * scale
        scale *= 32
        if value < 32:
            numbers.append(number)
            number, scale = 0, 1
    return numbers


def test_packed_numbers_come_back():
    from harness.leaderboard.panel import pack

    numbers = [0, 1, 31, 32, 33, 1023, 1024, 2**31 - 1]
    assert unpack(pack(numbers)) == numbers
    assert len(pack([31])) == 1
    assert unpack(pack([-5, 2**40])) == [0, 2**31 - 1]


def test_many_classes_are_summed_into_groups_and_their_largest_confusions(tmp_path, embedded):
    bundle = make_bundle(dataset="many", classes=102, n=600, seeds=(1,), quality=0.6)
    write_bundle(tmp_path, bundle)
    (run,) = embedded(publish(tmp_path).files["index.html"])["runs"].values()
    found = run["confusion"]
    assert "cells" not in found
    largest = unpack(found["largest"])
    triples = [largest[at : at + 3] for at in range(0, len(largest), 3)]
    confusion = bundle.records[0].scores["test"].confusion
    assert all(confusion[true][answered] == count for true, answered, count in triples)
    assert triples == sorted(triples, key=lambda triple: -triple[2])
    errors = sum(map(sum, confusion)) - sum(confusion[at][at] for at in range(102))
    assert found["rest"] == [errors - sum(count for *_, count in triples), 600]
    assert sum(unpack(found["coarse"])[1::2]) == 600


def test_shared_ranks_across_data_sets_are_marked(tmp_path):
    for dataset in ("x", "y"):
        for backbone in ("one", "two"):
            write_bundle(tmp_path, make_bundle(**SMALL, dataset=dataset, backbone=backbone))
    text = publish(tmp_path).files["LEADERBOARD.md"]
    assert "| 1= | one | 1.50 |" in text
    assert "| 1= | two | 1.50 |" in text


@pytest.mark.parametrize("classes", [30, 31, 32, 33])
def test_each_class_is_counted_once_whether_whole_or_in_groups(classes):
    from harness.leaderboard.panel import Shared, summarise_run

    bundle = make_bundle(dataset="some", classes=classes, n=4 * classes, seeds=(1,), epochs=1)
    found = summarise_run(bundle, Shared())["confusion"]
    assert ("cells" in found) == (classes <= 32)
    assert sum(unpack(found["cells"] if "cells" in found else found["coarse"])[1::2]) == 4 * classes


def test_the_f1_of_each_class_is_that_of_the_record(tmp_path, embedded):
    bundle = make_bundle(**SMALL, dataset="x")
    write_bundle(tmp_path, bundle)
    (run,) = embedded(publish(tmp_path).files["index.html"])["runs"].values()
    f1 = [value / 1000 for value in unpack(run["confusion"]["f1"])]
    assert f1 == pytest.approx(bundle.records[0].scores["test"].per_class.f1, abs=5.1e-4)


# What stands in a name: markup, scripts, formulas, controls, directions, LaTeX, Markdown, paths.
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]><x>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "&lt;b&gt; &amp; &#60;",
    "{{ 7 * 7 }}{% raw %}",
    "${alert(1)}`x`",
    "=HYPERLINK(1)",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1+1",
    "\uff1d1+1",
    "[bold red]x[/bold red]",
    "[link=https://example.org]x[/link]",
    "[x](https://example.org)",
    "![x](https://example.org/x.png)",
    "https://example.org/x",
    "www.example.org",
    "**x** __y__ ~~z~~",
    "# x",
    "a|b|c",
    "`code`",
    "<https://example.org>",
    "\x1b[2J\x07bell",
    "\x1b]0;title\x07",
    "\x9b31mred",
    "nul\x00byte",
    "line\nbreak\r\nmore",
    "\u2028\u2029",
    "safe\u202egpj.exe",
    "\u2066\u2067x\u2069",
    "zero\u200bwidth\ufeff",
    "\\input{/etc/passwd}",
    "\\write18{ls} ^^41 $x$ #1 %x",
    "a_b & c_d \\\\ \\hline",
    "{x}~y^z",
    "--- << >> ?` !` ,, ''",
    "../../etc/passwd",
    "C:\\Windows\\x",
    "é 日本語 🌻",
    "e\u0301 combining",
    "x" * 300,
    "__proto__",
    " leading and trailing ",
]
NAMED = ("dataset", "class", "image", "study", "backbone", "plugin", "licence", "optimizer", "device")


def hostile_bundle(text):
    """A bundle with the text in every name, each marked so that it can be found."""

    def name(what):
        return f"{what}:{text}"

    pattern = name("image").replace("{", "{{").replace("}", "}}") + "{number}"
    return make_bundle(
        dataset=name("dataset"),
        classes=(name("class"), "other"),
        image=pattern,
        n=12,
        seeds=(1,),
        epochs=1,
        quality=0.6,
        backbone=name("backbone"),
        study=name("study"),
        licence=name("licence"),
        optimizer=name("optimizer"),
        device=name("device"),
        distributions={"backbone": name("plugin")},
    )


class Shown(HTMLParser):
    """What a reader of a page sees, and which elements and attributes it has."""

    def __init__(self):
        super().__init__()
        self.text, self.tags, self.attributes = [], set(), set()
        self._quiet = 0

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self._quiet += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._quiet -= tag in ("script", "style")

    def handle_data(self, text):
        if not self._quiet:
            self.text.append(text)


def latex_text(source):
    """What LaTeX would set: each command that stands for a sign replaced by it."""
    signs = {
        "textbackslash": "\\",
        "textasciitilde": "~",
        "textasciicircum": "^",
        "textless": "<",
        "textgreater": ">",
        "textbar": "|",
        "textquotedbl": '"',
        "textquotesingle": "'",
        "textasciigrave": "`",
    }
    found = re.sub(r"\\(text\w+)\{\}", lambda match: f"\x00{ord(signs[match[1]]):04x}", source)
    found = re.sub(r"\\([{}$&%#_ ])", lambda match: f"\x00{ord(match[1]):04x}", found)
    found = found.replace("{[}", "[").replace("{]}", "]").replace("{*}", "*").replace("{}", "")
    return re.sub("\x00(.{4})", lambda match: chr(int(match[1], 16)), found)


def markdown_text(source):
    """What a reader of Markdown sees: escapes undone."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", source)


def visible(text):
    """Hostile text as LaTeX shows it: controls by their number, as elsewhere by their sign."""
    return "".join(
        f"<U+{ord(sign):04X}>" if unicodedata.category(sign)[0] == "C" or safe_text(sign) != sign else sign
        for sign in text
    )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Return what is published of each hostile text."""
    made = {}
    for text in HOSTILE:
        folder = tmp_path_factory.mktemp("hostile")
        write_bundle(folder, hostile_bundle(text))
        made[text] = publish(folder)
    return made


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_shown_as_text_in_every_format(hostile, text, embedded):
    made = hostile[text]
    assert made.runs == 1, made.rejected
    files = made.files
    for name, content in files.items():
        raw = {sign for sign in content if unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp", "Cs")}
        assert raw <= {"\n"}, name

    shown = safe_text(text)
    table = markdown_text(files["LEADERBOARD.md"])
    for what in ("dataset", "class", "study", "backbone", "plugin", "licence", "optimizer", "device"):
        assert f"{what}:{shown}" in table

    (row,) = csv.DictReader(io.StringIO(files["leaderboard.csv"]))
    assert row["dataset"] == f"dataset:{shown}"
    for what in ("study", "backbone", "plugin", "licence", "optimizer", "device"):
        assert f"{what}:{shown}" in row[what]

    (board,) = json.loads(files["leaderboard.json"])["leaderboards"]
    assert files["leaderboard.json"].isascii()
    assert (board["dataset"], board["classes"][0]) == (f"dataset:{text}", f"class:{text}")
    for what in ("study", "backbone", "licence", "optimizer", "device"):
        assert board["rows"][0][what] == f"{what}:{text}"

    tex = latex_text(files["leaderboard.tex"])
    for what in ("dataset", "class", "study", "backbone", "plugin", "licence", "optimizer"):
        assert f"{what}:{visible(text)}" in tex

    parser = Shown()
    parser.feed(files["index.html"])
    page = "".join(parser.text)
    for what in ("dataset", "class", "study", "backbone", "optimizer"):
        assert f"{what}:{shown}" in page
    data = embedded(files["index.html"])
    (run,) = data["runs"].values()
    held = canonical([run, data["shared"], data["boards"]])
    for what in NAMED:
        assert canonical(f"{what}:{shown}")[1:-1] in held


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_adds_no_markup(hostile, text):
    files, plain = hostile[text].files, hostile["é 日本語 🌻"].files
    one, other = Shown(), Shown()
    one.feed(files["index.html"])
    other.feed(plain["index.html"])
    # Where a long name may break is the page's own.
    assert one.tags - {"wbr"} == other.tags - {"wbr"}
    assert one.attributes == other.attributes
    scripts = r"<script[ >]"
    assert len(re.findall(scripts, files["index.html"])) == len(re.findall(scripts, plain["index.html"])) == 4
    for name in ("LEADERBOARD.md", "leaderboard.tex"):
        assert files[name].count("\n") == plain[name].count("\n")
    # Nothing that LaTeX would take for a command but those that stand for signs and ours.
    commands = set(re.findall(r"\\([A-Za-z]+|.)", files["leaderboard.tex"]))
    allowed = set(re.findall(r"\\([A-Za-z]+|.)", plain["leaderboard.tex"]))
    signs = {"textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"}
    signs |= {"textquotedbl", "textquotesingle", "textasciigrave", *"{}$&%#_ "}
    assert commands <= allowed | signs
    bare = [re.sub(r"\\.", "", found["leaderboard.tex"]) for found in (files, plain)]
    for sign in "_^~$#&%":
        assert bare[0].count(sign) == bare[1].count(sign), sign
    assert bare[0].count("{") == bare[0].count("}")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b", r"a\_b"),
        ("50 % & $1 #2", r"50 \% \& \$1 \#2"),
        ("\\x{y}", r"\textbackslash{}x\{y\}"),
        ("^^M~", r"\textasciicircum{}\textasciicircum{}M\textasciitilde{}"),
        ("---", "-{}-{}-"),
        ("<<,,", r"\textless{}\textless{},{},"),
        ("?`!`", r"?\textasciigrave{}!\textasciigrave{}"),
        ("[x]*", "{[}x{]}{*}"),
        ("a  b", r"a \ b"),
        ("\x1b\u202e", r"\textless{}U+001B\textgreater{}\textless{}U+202E\textgreater{}"),
        ("é 日本", "é 日本"),
    ],
)
def test_latex_sets_text_as_it_is(text, escaped):
    from harness.leaderboard.latex import escape_latex

    assert escape_latex(text) == escaped


def test_there_are_enough_hostile_names():
    assert len(set(HOSTILE)) >= 40


def test_the_page_allows_what_it_holds_and_nothing_else(bundles):
    import base64
    import hashlib

    page = publish(bundles).files["index.html"]
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    parts = {name: values for name, *values in (part.split() for part in policy.split("; "))}
    assert parts["default-src"] == ["'none'"]
    assert "unsafe" not in policy
    for kind, directive in (("style", "style-src"), ("script", "script-src")):
        held = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.S)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in held]
        assert parts[directive] == [f"'sha256-{value}'" for value in hashes]
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert " style=" not in page
    assert not re.search(r" on\w+=", re.sub(r"<script.*?</script>", "", page, flags=re.S))
    assert "@import" not in page
    assert "url(" not in page


def test_the_page_is_readable_without_scripts_and_by_a_screen_reader(bundles):
    page = publish(bundles).files["index.html"]
    assert page.count("<table") == page.count("<caption")
    assert not re.search(r"<th(?! scope=)(?!ead)", page)
    assert '<html lang="en"' in page
    assert 'class="skip" href="#main"' in page
    for region in re.findall(r'<div class="scroll[^>]*>', page):
        assert 'tabindex="0"' in region
        assert "aria-label" in region
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#(?!run=)([^"]+)"', page):
        assert target in ids


def test_data_sets_keep_their_place_in_the_address(bundles):
    page = publish(bundles).files["index.html"]
    assert 'href="#data-trashnet"' in page
    assert 'href="#data-hymenoptera"' in page
