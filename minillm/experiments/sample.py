"""Text from a run."""
from pathlib import Path

from minillm.conversion.int8_model import WEIGHTS, in_weights
from minillm.data.tokenizers import Tokenizer
from minillm.errors import MiniLLMError, unknown
from minillm.experiments.options import check_range
from minillm.experiments.run_folder import RunFolder, load_run, load_unquantized
from minillm.experiments.running import announce_compiling
from minillm.models.gpt import GPT
from minillm.nn import Module
from minillm.training.readers import LabelReader, PairReader


def sample(path: str | Path, prompt: str | None = None, tokens: int = 200, temperature: float = 0.8, top_k: int = 0,
           seed: int = 0, weights: str | None = None, int8_cache: bool = False, beam: int = 1, quiet: bool = True) -> dict:
    """{"prompt", "text"}: the prompt continued by `tokens` tokens; the text holds the prompt too.

    Without a prompt it begins with a line's end, or with the first token of a model that has never seen one. `weights`: float32,
    float16 or int8, where None is what the run's recipe has; `int8_cache`: keys and values are held as int8 codes. A model that
    learned tasks answers the prompt instead, taking the most likely token each time, or the best of `beam` answers.
    """
    check_range("beam", beam, 1)
    for name, value in (("tokens", tokens), ("top-k", top_k), ("seed", seed), ("temperature", temperature)):
        check_range(name, value, 0)
    if weights is not None and weights not in WEIGHTS:
        raise unknown("weights", weights, WEIGHTS)
    model, tokenizer, options = load_run(path) if weights is None else load_unquantized(path, "given other weights")
    if weights is not None:
        model = in_weights(model, weights)
    if options.tasks:
        if int8_cache:
            raise MiniLLMError("--int8-cache is for a model that goes on with a text, this one answers: drop it")
        return answer(RunFolder(Path(path)).reader(options, tokenizer), model, prompt, beam)
    if prompt is None:
        prompt = first_of(tokenizer)
    ids = tokenizer.encode(prompt)
    if not len(ids):
        raise MiniLLMError("the prompt is empty: give at least one character, e.g. --prompt 'The '")
    announce_compiling(quiet, "generation")
    more = (int8_cache,) if isinstance(model, GPT) else ()
    continued = model.generate(ids, tokens, temperature, top_k, seed, *more)
    return {"prompt": prompt, "text": tokenizer.decode(continued)}


def answer(reader: PairReader | LabelReader, model: Module, prompt: str | None, beam: int) -> dict:
    """The same of a model that answers: "text" is the answer alone."""
    if not prompt:
        raise MiniLLMError("this model answers a text: give one by --prompt")
    if beam > 1 and not isinstance(reader, PairReader):
        raise MiniLLMError("--beam is for a model that answers by a text, this one names a class: drop it")
    found = reader.best(model, prompt, beam) if beam > 1 else reader.answers(model, [prompt])[0]
    return {"prompt": prompt, "text": found}


def first_of(tokenizer: Tokenizer) -> str:
    """A line's end if the tokenizer knows it, else its first token."""
    try:
        tokenizer.encode("\n")
        return "\n"
    except MiniLLMError:
        return tokenizer.decode([0])
