"""Text from a run."""
from pathlib import Path

from minillm.conversion.int8_model import WEIGHTS, in_weights
from minillm.data.tokenizers import Tokenizer
from minillm.errors import MiniLLMError, unknown
from minillm.experiments.options import check_range
from minillm.experiments.run_folder import load_run, load_unquantized
from minillm.experiments.running import announce_compiling


def sample(path: str | Path, prompt: str | None = None, tokens: int = 200, temperature: float = 0.8, top_k: int = 0,
           seed: int = 0, weights: str | None = None, int8_cache: bool = False, quiet: bool = True) -> dict:
    """{"prompt", "text"}: the prompt continued by `tokens` tokens; the text holds the prompt too.

    Without a prompt it begins with a line's end, or with the first token of a model that has never seen one. `weights`: float32,
    float16 or int8, where None is what the run's recipe has; `int8_cache`: keys and values are held as int8 codes.
    """
    for name, value in (("tokens", tokens), ("top-k", top_k), ("seed", seed), ("temperature", temperature)):
        check_range(name, value, 0)
    if weights is not None and weights not in WEIGHTS:
        raise unknown("weights", weights, WEIGHTS)
    model, tokenizer, _ = load_run(path) if weights is None else load_unquantized(path, "given other weights")
    if weights is not None:
        model = in_weights(model, weights)
    if prompt is None:
        prompt = first_of(tokenizer)
    ids = tokenizer.encode(prompt)
    if not len(ids):
        raise MiniLLMError("the prompt is empty: give at least one character, e.g. --prompt 'The '")
    announce_compiling(quiet, "generation")
    continued = model.generate(ids, tokens, temperature, top_k, seed, int8_cache)
    return {"prompt": prompt, "text": tokenizer.decode(continued)}


def first_of(tokenizer: Tokenizer) -> str:
    """A line's end if the tokenizer knows it, else its first token."""
    try:
        tokenizer.encode("\n")
        return "\n"
    except MiniLLMError:
        return tokenizer.decode([0])
