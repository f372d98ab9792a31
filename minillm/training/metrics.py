"""metrics.jsonl: one line of JSON for each attempt and each validation. No clock in it: the same seed gives the same file."""
import json
from pathlib import Path

from minillm.errors import MiniLLMError


class MetricsLog:
    """Appends records to a file, each line at once on its way."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise MiniLLMError(f"cannot write {path}: {error.strerror}") from error

    def write(self, record: dict) -> None:
        self.file.write(json.dumps(record, allow_nan=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_metrics(path: Path) -> list[dict]:
    """All records of a file, none if there is no file; from a line that is no record, such as one cut short by a crash, none."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:                       # neither JSON nor UTF-8
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        records.append(record)
    return records


def curves(records: list[dict]) -> dict:
    """Records as the lists that figures are drawn from."""
    trained, validated = [r for r in records if "loss" in r], [r for r in records if "val_loss" in r]
    return {"steps": [r["step"] for r in trained], "loss": [r["loss"] for r in trained],
            "val_steps": [r["step"] for r in validated], "val_loss": [r["val_loss"] for r in validated]}


def mean_zero_share(records: list[dict]) -> float:
    """The share of cotangents that rounding made zero, mean of the watched steps; 0 if none was watched."""
    shares = [r["zero_gradient_share"] for r in records if "zero_gradient_share" in r]
    return sum(shares) / len(shares) if shares else 0.0
