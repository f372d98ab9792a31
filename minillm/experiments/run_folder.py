"""A run is a folder: config.json, tokenizer.json, metrics.jsonl, state.safetensors, loss.png."""
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from minillm._version import __version__
from minillm.data.tokenizers import Tokenizer, tokenizer_from_json
from minillm.errors import MiniLLMError
from minillm.experiments.options import TrainOptions
from minillm.files import write_whole
from minillm.models.gpt import GPT
from minillm.precision.recipe import Recipe
from minillm.recipes import from_json, to_json
from minillm.training.checkpoint import load_model, read_state

FILES = ("config.json", "tokenizer.json", "metrics.jsonl", "state.safetensors", "loss.png")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files, and reading them with errors in one line."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def state(self) -> Path:
        return self.path / "state.safetensors"

    @property
    def loss_figure(self) -> Path:
        return self.path / "loss.png"

    def begin(self, options: TrainOptions, recipe: Recipe, tokenizer: Tokenizer, force: bool) -> None:
        """Make the folder for a new run. One that holds anything is refused, or with `force` rid of a run's files, no others."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            if not self.path.is_dir() or not force:
                raise MiniLLMError(f"{self.path} exists: choose another --out, go on with it by --resume, or replace it by --force")
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
        write_whole(self.config, json.dumps({"minillm": __version__, "options": dataclasses.asdict(options),
                                             "recipe": to_json(recipe)}, indent=1))
        write_whole(self.tokenizer, json.dumps(tokenizer.to_json()))

    def read_json(self, path: Path):
        """The content of one JSON file of the run."""
        if not self.path.is_dir():
            raise MiniLLMError(f"there is no run {self.path}: train one with minillm train --out {self.path}")
        try:
            return json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise MiniLLMError(f"{self.path} is not a run: {path.name} is missing") from error
        except (ValueError, OSError) as error:
            raise MiniLLMError(f"{path} cannot be read ({error}): restore it or train again") from error

    def read_config(self) -> tuple[TrainOptions, Recipe]:
        """The options and the recipe that the run was made with."""
        config = self.read_json(self.config)
        try:
            return TrainOptions(**config["options"]), from_json(config["recipe"])
        except (KeyError, TypeError) as error:
            raise MiniLLMError(f"{self.config} is damaged or of another version ({error}): restore it or train again") from error

    def read_tokenizer(self) -> Tokenizer:
        return tokenizer_from_json(self.read_json(self.tokenizer))


def load_run(path: str | Path) -> tuple[GPT, Tokenizer, TrainOptions]:
    """A trained model with its tokenizer and the options that it was made with."""
    folder = RunFolder(Path(path))
    options, recipe = folder.read_config()
    tokenizer = folder.read_tokenizer()
    arrays, facts = read_state(folder.state)
    model = GPT(options.shape(tokenizer.vocabulary), recipe, options.seed)
    load_model(folder.state, model, arrays, facts)
    return model, tokenizer, options
