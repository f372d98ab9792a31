"""What the README shows is what happens."""
import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def block_after(mark: str) -> str:
    """The fenced block below a comment of the README."""
    return re.search(rf"<!-- {mark} -->\n```\w*\n(.*?)```", README, re.S)[1]


def test_the_example_prints_what_its_comments_say():
    code = block_after("example")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README", "exec"), {})
    said = [line.removeprefix("# ") for line in code.splitlines() if line.startswith("# ")]
    assert printed.getvalue().splitlines() == said


def test_every_file_that_it_names_exists():
    root = Path(__file__).parent.parent
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (root / link).exists(), link


def test_both_commands_are_marked_for_ci():
    for name in ("demo", "tests"):
        assert block_after(f"command: {name}").startswith("python3 -m venv .venv")
