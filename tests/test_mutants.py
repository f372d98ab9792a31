"""Bugs planted in minillm, each of which makes a named ordinary test fail that passes without it.

A mutant is a function of minillm with one piece of its source replaced. Only its code is exchanged, so that whoever holds the
function has the mutant. Kernels are off: a bug in a NumPy rule does not show where a kernel stands in for it.
"""
import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType

import numpy as np
import pytest
from tiny_gpt import make

from minillm import optim, rounding
from minillm.autograd import tensor
from minillm.autograd.context import Context
from minillm.autograd.rule import RULES
from minillm.autograd.rules import elementwise, products
from minillm.errors import MiniLLMError
from minillm.models import gpt
from minillm.nn.attention import Block
from minillm.nn.module import Module
from minillm.precision import accumulation, recipe
from minillm.precision.loss_scaling import LossScaler
from minillm.precision.master_weights import working_copy
from minillm.training import trainer

FAILURES = (AssertionError, MiniLLMError, pytest.fail.Exception)


@dataclass(frozen=True)
class Mutant:
    """A bug: `new` stands where `old` stood in `function`; `test` is "module.name" without "test_", called with `arguments`."""

    name: str
    function: Callable
    old: str
    new: str
    test: str
    arguments: tuple = ()

    def code(self) -> CodeType:
        """The function's code with the bug."""
        source = textwrap.dedent(inspect.getsource(self.function))
        assert source.count(self.old) == 1, f"{self.name}: {self.old!r} stands {source.count(self.old)} times in {self.function}"
        tree = ast.parse(source.replace(self.old, self.new))
        tree.body[0].decorator_list, names = [], {}
        exec(compile(tree, f"<mutant: {self.name}>", "exec"), self.function.__globals__, names)
        return names[tree.body[0].name].__code__

    def run(self) -> None:
        """The named test, as pytest would call it."""
        module, name = self.test.split(".")
        getattr(importlib.import_module(f"test_{module}"), f"test_{name}")(*self.arguments)


MUTANTS = [
    # loss scaling
    Mutant("scale not applied", trainer.training_step, "scale / len(batches)", "1 / len(batches)",
           "loss_scaling.a_training_step_hands_out_gradients_that_are_scaled", (2.0**16,)),
    Mutant("scale shown but not propagated", RULES["mul"].backward, "g * z", "g",
           "loss_scaling.raw_gradients_are_exactly_s_times_the_unscaled_ones", ("float32", 2.0**16)),
    Mutant("unscale forgotten", trainer.training_step, "clip_factor(norm, clip) / scale", "clip_factor(norm, clip)",
           "loss_scaling.a_scale_changes_no_bit_of_what_is_learned_where_nothing_underflows", ("float32", 2.0**16)),
    Mutant("norm of scaled gradients", trainer.training_step, "gradients.values(), 1 / scale", "gradients.values()",
           "loss_scaling.a_scale_changes_no_bit_of_what_is_learned_where_nothing_underflows", ("float32", 2.0**16)),
    Mutant("moments touched before the finite check", trainer.training_step, "    norm = global_norm",
           "    optimizer.step(gradients, 0.0, 1 / scale)\n    norm = global_norm",
           "loss_scaling.an_overflow_touches_neither_weights_nor_moments_nor_the_step_count", ("float32",)),
    Mutant("overflow not noticed", trainer.training_step, "finite = math.isfinite(norm)", "finite = True",
           "loss_scaling.an_overflow_touches_neither_weights_nor_moments_nor_the_step_count", ("float16-mixed",)),
    Mutant("a NaN passes for finite", trainer.training_step, "math.isfinite(norm)", "not norm == math.inf",
           "gpt.pure_float16_at_eps_1e_8_diverges"),
    Mutant("no floor", LossScaler.update, "max(self.scale * self.how.backoff, self.how.floor)", "self.scale * self.how.backoff",
           "loss_scaling.long_runs_end_at_the_ends_of_the_range"),
    Mutant("no ceiling", LossScaler.update, "grown if grown <= FLOAT32.max else self.scale", "grown",
           "loss_scaling.long_runs_end_at_the_ends_of_the_range"),
    Mutant("clean steps counted through an overflow", LossScaler.update, "self.how.floor), 0", "self.how.floor), self.clean_steps",
           "loss_scaling.it_grows_after_n_clean_steps_in_a_row_and_backs_off_at_once"),
    Mutant("micro-batches not divided", trainer.training_step, "scale / len(batches)", "scale",
           "loss_scaling.two_micro_batches_of_the_same_windows_are_one_batch"),
    Mutant("the last micro-batch only", trainer.accumulate, "widen(total[name], np.float32) + g if name in total else g", "g",
           "loss_scaling.two_micro_batches_are_their_common_batch"),
    Mutant("gradients in the order of a set", trainer.accumulate, "[name for name in parameters if name in found]",
           "parameters.keys() & found.keys()", "loss_scaling.gradients_come_in_the_order_of_the_parameters"),

    # autograd and rounding
    Mutant("unbroadcast forgotten", elementwise.unbroadcast, "if axes else g", "if False else g",
           "golden.loss_and_every_gradient_are_pytorchs", ("bias",)),
    Mutant("unbroadcast takes one of many", elementwise.unbroadcast, "g.sum(axes, dtype=g.dtype)", "g.max(axes)",
           "golden.loss_and_every_gradient_are_pytorchs", ("bias",)),
    Mutant("gradient overwritten, not added", tensor.backward, "share if here is None else here + share", "share",
           "golden.loss_and_every_gradient_are_pytorchs", ("no bias",)),
    Mutant("attention sees one token ahead", products.visible, "Tk - Tq", "Tk - Tq + 1",
           "gpt.a_later_token_changes_no_earlier_logit", ("float32", True)),
    Mutant("scores not scaled", products.scores, "* q.shape[-1] ** -0.5", "",
           "golden.loss_and_every_gradient_are_pytorchs", ("no bias",)),
    Mutant("truncation instead of nearest even", rounding.to_grid, "(part > word(2 ** (width - 1)))", "(part < word(0))",
           "recipes.results_name_another_format_than_the_inputs"),
    Mutant("ties away from zero", rounding.to_grid, "(part == word(2 ** (width - 1))) & odd", "(part == word(2 ** (width - 1)))",
           "rounding.every_tie_between_two_bfloats_goes_to_the_even_one", (np.float32, 1)),
    Mutant("rows used twice get one cotangent", RULES["embedding"].backward,
           "xp.add.at(out, ids.reshape(-1), g.reshape(-1, g.shape[-1]))", "out[ids.reshape(-1)] = g.reshape(-1, g.shape[-1])",
           "golden.loss_and_every_gradient_are_pytorchs", ("no bias",)),
    Mutant("a term of the layer norm missing", RULES["layer_norm"].backward, "h - row_mean(h) - normal", "h - normal",
           "golden.loss_and_every_gradient_are_pytorchs", ("no bias",)),
    Mutant("dropout draws another mask backward", RULES["dropout"].backward, "g.shape, rate, key)", "g.shape, rate, key + 1)",
           "rules.dropout_keeps_the_expectation_and_draws_the_same_mask_twice"),
    Mutant("a float64 leaks into an op", RULES["gelu"].forward, "x / 2 *", "xp.float64(0.5) * x *",
           "recipes.what_is_rounded_was_computed_in_float32", ("float16-mixed",)),
    Mutant("a float64 leaks into the optimizer", optim.AdamW.constants, "map(np.float32", "map(np.float64",
           "optim.watchers_see_every_rounding_of_an_update", (rounding.FLOAT16,)),
    Mutant("weights cast at each use", working_copy, "if at not in context.leaf_casts", "if True",
           "recipes.a_parameter_is_cast_once_a_forward_pass_however_often_it_is_used"),
    Mutant("casts outlive no_record", Context.no_record.__wrapped__, "self.leaf_casts.clear()", "pass",
           "recipes.a_cast_made_without_recording_does_not_stand_in_for_one_that_records"),
    Mutant("bias and gain cast like the rest", recipe.Ops.plan, "(named if n in rule.wide else find)", "find",
           "recipes.every_op_of_a_float16_mixed_forward_pass_has_the_promised_formats"),
    Mutant("the shorter place wins", recipe.find, "range(len(names), 0, -1)", "range(1, len(names) + 1)",
           "recipes.the_most_exact_key_wins"),

    # accumulators
    Mutant("a sum rounded twice", accumulation.odd_sum, "total, error = two_sum(x, y)", "total, error = x + y, 0 * x * y",
           "accumulation.a_sum_that_float64_rounds_to_a_tie_is_not_rounded_again"),
    Mutant("chunks begin with the sum so far", accumulation.chunked, "how.chunk], zero, how)", "how.chunk], total, how)",
           "accumulation.float16_counts_to_2048", ("off",)),
    Mutant("no promotion until the end", accumulation.blocked, "done % how.promote == 0 or", "False or",
           "accumulation.promotion_mends_a_truncating_accumulator_of_14_digits"),
    Mutant("Kahan adds what he should take off", accumulation.kahan, "add(term(k), -lost)", "add(term(k), lost)",
           "accumulation.float16_counts_to_2048", ("off",)),
    Mutant("one key for all additions", accumulation.Adder.__call__, "int(next(self.keys))", "7",
           "accumulation.stochastic_sums_are_unbiased_and_depend_on_key_and_place", ("off",)),
    Mutant("the three products draw the same bits", accumulation.Product.__call__, "ROLES.index(self.role) + 1", "1",
           "accumulation.the_three_products_draw_different_bits"),

    # the optimizer
    Mutant("decay on vectors too", optim.AdamW.constants, "(p.ndim > 1)", "1", "optim.decay_is_on_matrices_only", (optim.AdamW,)),
    Mutant("no bias correction", optim.AdamW.constants, "1 / (1 - b2**self.steps)", "1",
           "golden.ten_adamw_steps_have_pytorchs_losses", ("bias",)),
    Mutant("eps in the state's format", optim.AdamW.constants, "self.eps", "float(np.float16(self.eps))",
           "optim.eps_is_added_in_float32_whatever_the_state"),
    Mutant("state kept in float32", optim.Optimizer.keep, "exact, self.state_format", "exact, FLOAT32",
           "optim.state_is_kept_in_its_format", (optim.AdamW, rounding.FLOAT16)),
    Mutant("squared before unscaled", optim.global_norm, "np.square(widen(g, np.float32) * np.float32(factor))",
           "(np.square(widen(g, np.float32)) * np.float32(factor) * np.float32(factor))",
           "optim.the_norm_of_nothing_and_of_the_very_large"),
    Mutant("clipping scales small gradients up", optim.clip_factor, "min(1.0, clip / (norm + 1e-6))", "clip / (norm + 1e-6)",
           "optim.clipping_bounds_the_norm_and_never_scales_up"),
    Mutant("warm-up starts at 0", optim.cosine_schedule, "(step + 1)", "step", "optim.the_schedule_is_the_published_formula"),

    # the model
    Mutant("residual weights not made smaller", Block.__init__, "(2 * layers)", "1", "gpt.initial_weights_have_gpt2s_deviations"),
    Mutant("positions start at 0 behind a cache", gpt.GPT.forward, "np.arange(start, start + T", "np.arange(0, T",
           "gpt.generation_is_the_uncached_one_also_beyond_the_context", ("float32",)),
    Mutant("the first tokens are read beyond the context", gpt.GPT.generate, "ids[-T:]", "ids[:T]",
           "gpt.generation_is_the_uncached_one_also_beyond_the_context", ("float32",)),
    Mutant("noise forgotten", gpt.choose, "np.float32(temperature) + noise", "np.float32(temperature)",
           "gpt.samples_follow_the_softmax", (1.0, 0)),
    Mutant("temperature multiplies", gpt.choose, "logits / np.float32", "logits * np.float32",
           "gpt.samples_follow_the_softmax", (2.0, 0)),
    Mutant("loading begins before all is checked", Module.load_state_dict, "array.shape != state[name].shape or ", "",
           "gpt.loading_is_all_or_nothing", (lambda: make(channels=16).state_dict(), "tokens.weight")),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_named_test_fails_with_the_bug_and_passes_without(mutant, monkeypatch):
    monkeypatch.setenv("MINILLM_KERNELS", "off")
    mutant.run()
    monkeypatch.setattr(mutant.function, "__code__", mutant.code())
    with pytest.raises(FAILURES):
        mutant.run()


def test_names_of_mutants_differ():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
