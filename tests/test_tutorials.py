"""The form of the tutorials: plain scripts that a notebook and a gallery can read too. CI runs the scripts themselves."""
import ast
import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))
MARKER = re.compile(r"# %%( \[markdown\])?")
LONGEST = 120       # characters of a line of prose
# What Markdown and reStructuredText do not read alike: headings by #, fences, formulas, links, roles, directives, tables.
ONE_DIALECT = re.compile(r"^#|^```|\$|\]\(|`_|:[a-z]+:`|^\.\. |^\|", re.MULTILINE)


@pytest.fixture(params=TUTORIALS, ids=lambda path: path.stem)
def tutorial(request):
    return request.param


def cells(path):
    """[(kind, text)]: "markdown" without its quotes or comment signs, or "code"."""
    lines, found = path.read_text("utf-8").split("\n"), []
    starts = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    assert starts[0] == 0, "the first line opens the first cell"
    for start, end in pairwise([*starts, len(lines)]):
        marker = MARKER.fullmatch(lines[start])
        assert marker, f"line {start + 1} opens no percent cell: {lines[start]}"
        body = lines[start + 1:end]
        found.append(("markdown", prose(body)) if marker[1] else ("code", "\n".join(body)))
    return found


def prose(body):
    """The text of a markdown cell: a string, or comments."""
    text = "\n".join(body).strip()
    if text.startswith('"""'):
        assert text.endswith('"""')
        return text[3:-3].strip("\n")
    assert all(line.startswith("#") and line[1:2] in ("", " ") for line in text.split("\n")), text
    return "\n".join(line[2:] for line in text.split("\n"))


def tree_of(path):
    return ast.parse(path.read_text("utf-8"))


def headings(text):
    """(title, underline) of every line with a row of one sign below it."""
    return [(above, below) for above, below in pairwise(text.split("\n"))
            if re.fullmatch(r"([=\-~^])\1{2,}", below) and above.strip()]


def test_every_tutorial_has_a_number_of_its_own():
    numbers = [path.name[:3] for path in TUTORIALS]
    assert len(set(numbers)) == len(numbers)
    assert all(re.fullmatch(r"\d\d_", number) for number in numbers)


def test_what_it_imports_from_the_package_is_there(tutorial):
    for node in ast.walk(tree_of(tutorial)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "minillm":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), alias.name


def test_the_first_cell_is_the_docstring_with_a_title(tutorial):
    kind, text = cells(tutorial)[0]
    assert kind == "markdown"
    assert text == ast.get_docstring(tree_of(tutorial), clean=False).strip("\n")
    title, underline, empty, *rest = text.split("\n")
    assert underline == "=" * len(title)
    assert empty == ""
    assert any(rest)


def test_every_heading_is_underlined_as_far_as_it_goes_and_only_the_title_is_one(tutorial):
    found = [heading for kind, text in cells(tutorial) if kind == "markdown" for heading in headings(text)]
    assert len(found) > 3
    assert all(len(title) == len(underline) for title, underline in found), found
    assert [underline[0] for _, underline in found] == ["=", *"-" * (len(found) - 1)]


def test_prose_is_in_the_subset_that_markdown_and_rest_share(tutorial):
    for kind, text in cells(tutorial):
        if kind == "markdown":
            assert not ONE_DIALECT.search(text), ONE_DIALECT.search(text)[0]
            assert "`" not in text.replace("``", ""), text                     # code is in double backticks
            assert text.count("``") % 2 == 0, text
            for line in text.split("\n"):
                assert len(line) <= LONGEST, line
                assert line == line.rstrip()
            assert_lists_stand_apart(text.split("\n"))


def assert_lists_stand_apart(lines):
    """An empty line before and after: one dialect needs it."""
    for above, line in pairwise(lines):
        if line.startswith("- "):
            assert above == "" or above.startswith(("- ", "  ")), line
        elif above.startswith("- ") and line:
            assert line.startswith("  "), line


def test_prose_and_code_take_turns(tutorial):
    kinds = [kind for kind, _ in cells(tutorial)]
    assert kinds[0] == kinds[-1] == "markdown"
    assert kinds.count("markdown") > len(kinds) / 4
    assert "markdown" in kinds[1:-1]


def test_every_code_cell_can_be_read_by_itself(tutorial):
    for kind, text in cells(tutorial):
        if kind == "code":
            ast.parse(text)


def test_numbers_are_asserted(tutorial):
    asserts = [node for node in ast.walk(tree_of(tutorial)) if isinstance(node, ast.Assert)]
    assert len(asserts) > 10
    with_asserts = [text for kind, text in cells(tutorial) if kind == "code" and re.search(r"^ *assert ", text, re.MULTILINE)]
    assert len(with_asserts) > 3                                               # not all of them in one place


def test_it_is_a_script_without_a_guard_that_runs_anywhere(tutorial):
    source = tutorial.read_text("utf-8")
    assert "__name__" not in source
    assert "__file__" not in source
    assert "sys.path" not in source
    assert "pyplot" not in source                                              # figures are files, in the one style
    names = {alias.name for node in ast.walk(tree_of(tutorial)) if isinstance(node, ast.Import | ast.ImportFrom)
             for alias in node.names}
    assert not any(name.startswith("_") for name in names)


def test_what_quick_changes_is_said(tutorial):
    docstring = ast.get_docstring(tree_of(tutorial))
    assert "``MINILLM_QUICK=1``" in docstring


def test_every_figure_is_saved_in_figures_under_the_number_of_its_tutorial(tutorial):
    tree, number = tree_of(tutorial), tutorial.stem[:2]
    paths = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and str(node.value).endswith(".png")]
    assert len(paths) >= 2
    assert len(set(paths)) == len(paths)
    assert all(re.fullmatch(rf"figures/{number}-[a-z0-9-]+\.png", path) for path in paths), paths
    made, saved = figures_of(tree)
    assert made == saved


def figures_of(tree):
    """Names of figures that style.figure made, and of those that style.save wrote, each in the order of the script."""
    made, saved = [], []
    for node in sorted((n for n in ast.walk(tree) if isinstance(n, ast.Assign | ast.Call)), key=lambda n: (n.lineno, n.col_offset)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "style.figure":
            made.append(ast.unparse(node.targets[0].elts[0]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "style.save":
            saved.append(ast.unparse(node.args[0]))
    return made, saved


def test_every_axis_has_a_label_with_a_unit(tutorial):
    labels = [keyword.value for node in ast.walk(tree_of(tutorial)) if isinstance(node, ast.Call)
              for keyword in node.keywords if keyword.arg in ("xlabel", "ylabel")]
    made, _ = figures_of(tree_of(tutorial))
    assert len(labels) >= len(made)
    # Units in brackets; an axis of names or letters has none, nor has one whose label says that it is a number of something.
    without = [text for label in labels if "(" not in (text := ast.unparse(label))]
    assert len(without) <= 3, without
