"""A run is a folder: config.json, tokenizer.json, metrics.jsonl, state.safetensors, loss.png."""
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from minillm._version import __version__
from minillm.data.tokenizers import Tokenizer, tokenizer_from_json
from minillm.errors import MiniLLMError
from minillm.experiments.data import Data, TaskData, load_data
from minillm.experiments.kinds import KINDS
from minillm.experiments.options import TrainOptions, make_model
from minillm.files import check_folder, write_whole
from minillm.hybrid.ensemble import Ensemble
from minillm.nn import Module, quantized_layers
from minillm.precision.recipe import Recipe
from minillm.recipes import from_json, to_json
from minillm.training.checkpoint import load_model, read_state
from minillm.training.quantized_checkpoint import load_integer, load_quantized
from minillm.training.readers import LabelReader, PairReader

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

    def member(self, number: int) -> Path:
        """The weights of one more model, where the run is an ensemble."""
        return self.path / f"member-{number}.safetensors"

    @property
    def members(self) -> list[Path]:
        return sorted(self.path.glob("member-*.safetensors"))

    def check_free(self, force: bool) -> None:
        """A folder that holds anything is refused; with `force`, only where files that are not of a run would be replaced."""
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self.path.is_dir():
            raise MiniLLMError(f"{self.path} is a file: choose another --out")
        if not force:
            raise MiniLLMError(f"{self.path} exists: choose another --out, go on with it by --resume, or replace it by --force")
        found = [name for name in FILES if (self.path / name).exists()]
        if found and not (self.metrics.exists() or self.state.exists()):
            raise MiniLLMError(f"{self.path} is not a run, but holds a {found[0]}, which would be lost: choose another --out")

    def begin(self, options: TrainOptions, recipe: Recipe, data: Data | TaskData, source: str | None = None) -> None:
        """Make the folder for a new run, in place of the run that is there; other files in it stay.

        `source`: the run whose weights it begins with.
        """
        check_folder(self.path)
        for path in [*(self.path / name for name in FILES), *self.members]:
            path.unlink(missing_ok=True)
        self.write_config(options, recipe, data, source)
        write_whole(self.tokenizer, json.dumps(data.tokenizer.to_json()))

    def write_config(self, options: TrainOptions, recipe: Recipe, data: Data | TaskData, source: str | None) -> None:
        about = {"text": data.digest, "classes": data.classes, "from": source, "recipe": to_json(recipe)}
        write_whole(self.config, json.dumps({"minillm": __version__, "options": dataclasses.asdict(options)} | about, indent=1))

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
        except (KeyError, TypeError, AttributeError) as error:
            raise MiniLLMError(f"{self.config} is damaged or of another version ({error}): restore it or train again") from error

    def read_data(self, options: TrainOptions) -> Data | TaskData:
        """The text that the run was trained on: a loss on another says nothing, and a resumed run would not be the same."""
        data = load_data(options, self.read_tokenizer())
        if self.read_json(self.config).get("text") != data.digest:
            name = options.task or options.text or f"{options.corpus} of this Python"
            raise MiniLLMError(f"{name} is not the text that {self.path} was trained on: restore it, or train a new run")
        return data

    def reader(self, options: TrainOptions, tokenizer: Tokenizer) -> PairReader | LabelReader:
        """How the run's model reads examples, and answers."""
        return KINDS[options.model].reader(tokenizer, options.context, self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that the run tells apart; none unless it is a classifier."""
        return tuple(self.read_json(self.config).get("classes", ()))

    def read_tokenizer(self) -> Tokenizer:
        return tokenizer_from_json(self.read_json(self.tokenizer))


def load_run(path: str | Path) -> tuple[Module | Ensemble, Tokenizer, TrainOptions]:
    """A trained model with its tokenizer and the options that it was made with; one of codes, where it was quantized.

    An ensemble where it has members.
    """
    folder = RunFolder(Path(path))
    options, recipe = folder.read_config()
    tokenizer = folder.read_tokenizer()
    model = load_weights(folder, folder.state, options, tokenizer, recipe)
    if folder.members:
        model = Ensemble([model, *(load_weights(folder, path, options, tokenizer, recipe) for path in folder.members)])
    return model, tokenizer, options


def load_weights(folder: RunFolder, path: Path, options: TrainOptions, tokenizer: Tokenizer, recipe: Recipe) -> Module:
    """One model of a run from its file."""
    arrays, facts = read_state(path)
    model = make_model(options, tokenizer.vocabulary, recipe, len(folder.classes), facts["shape"].get("kept", ()))
    if "integer" in facts:
        model = load_integer(model.shape, arrays, facts)
    elif "quantized" in facts:
        load_quantized(model, arrays, facts)
    else:
        load_model(path, model, arrays, facts)
    return model


def load_unquantized(path: str | Path, what: str) -> tuple[Module, Tokenizer, TrainOptions]:
    """The same of a run that can go on; MiniLLMError for one of codes, which `what` cannot."""
    model, tokenizer, options = load_run(path)
    if isinstance(model, Ensemble):
        raise MiniLLMError(f"{path} is an ensemble of {len(model.members)} models, which cannot be {what}: --strategy distill "
                           "makes one model of as many")
    if KINDS[options.model].counted:
        raise MiniLLMError(f"{path} holds counts of an {options.model} model, which cannot be {what}: take a run of another model")
    if quantized_layers(model):
        raise MiniLLMError(f"{path} is already quantized, and codes cannot be {what}: take the run that it was made from")
    return model, tokenizer, options
