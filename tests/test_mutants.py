"""Bugs planted in minillm, each of which makes a named ordinary test fail that passes without it.

A mutant is a function of minillm with one piece of its source replaced. Only its code is exchanged, so that whoever holds the
function has the mutant. Kernels are off: a bug in a NumPy rule does not show where a kernel stands in for it.
"""
import ast
import importlib
import inspect
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType

import numpy as np
import pytest
from tiny_gpt import make

from minillm import encoding, kernels, optim, rounding
from minillm.autograd import kernels as beside
from minillm.autograd import tensor, watching
from minillm.autograd.context import Context
from minillm.autograd.rule import RULES
from minillm.autograd.rules import elementwise, products, recurrence
from minillm.bench import measure, rowwise
from minillm.conversion import awq, convert, gptq, integer_model, trained
from minillm.data import examples, numbers, real
from minillm.errors import MiniLLMError
from minillm.experiments.data import TaskData
from minillm.formats import BFLOAT16, FLOAT8_E4M3, FLOAT16
from minillm.hybrid import distillation, ensemble, joint, masking, pretraining, pruning, robustness, self_training, structure
from minillm.models import answering, bert, decoding, gan, gpt, ngram, torch_file
from minillm.nn.attention import Block
from minillm.nn.caches import Int8Rows, KeyValueCache
from minillm.nn.integer import IntegerAttention
from minillm.nn.module import Module
from minillm.nn.quantized import QuantizedMatrix
from minillm.optim import clipping, eight_bit
from minillm.precision import accumulation, block_scaling, clinic, float8, recipe, tally, what_if
from minillm.precision.loss_scaling import LossScaler, LossScaling
from minillm.quantization import affine, fixed_point, integer_ops, packing
from minillm.quantization import products as int8_products
from minillm.training import readers, scores, trainer

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
    Mutant("scale not applied", trainer.one_update, "scale / divisor", "1 / divisor",
           "loss_scaling.a_training_step_hands_out_gradients_that_are_scaled", (2.0**16,)),
    Mutant("scale shown but not propagated", RULES["mul"].backward, "g * z", "g",
           "loss_scaling.raw_gradients_are_exactly_s_times_the_unscaled_ones", ("float32", 2.0**16)),
    Mutant("unscale forgotten", trainer.one_update, "clip_factor(norm, clip) / scale", "clip_factor(norm, clip)",
           "loss_scaling.a_scale_changes_no_bit_of_what_is_learned_where_nothing_underflows", ("float32", 2.0**16)),
    Mutant("norm of scaled gradients", trainer.one_update, "gradients.values(), scaler.inverse", "gradients.values()",
           "loss_scaling.a_scale_changes_no_bit_of_what_is_learned_where_nothing_underflows", ("float32", 2.0**16)),
    Mutant("moments touched before the finite check", trainer.one_update, "    norm = global_norm",
           "    optimizer.step(gradients, 0.0, 1 / scale)\n    norm = global_norm",
           "loss_scaling.an_overflow_touches_neither_weights_nor_moments_nor_the_step_count", ("float32",)),
    Mutant("overflow not noticed", trainer.one_update, "finite = math.isfinite(norm)", "finite = True",
           "loss_scaling.an_overflow_touches_neither_weights_nor_moments_nor_the_step_count", ("float16-mixed",)),
    Mutant("a NaN passes for finite", trainer.one_update, "math.isfinite(norm)", "not norm == math.inf",
           "gpt.pure_float16_at_eps_1e_8_diverges"),
    Mutant("no floor", LossScaler.update, "max(self.scale * self.how.backoff, self.how.floor or 0.0)",
           "self.scale * self.how.backoff", "loss_scaling.long_runs_end_at_the_ends_of_the_range"),
    Mutant("no ceiling", LossScaler.grown, "grown if grown <= FLOAT32.max or not self.how.checked else self.scale",
           "grown", "loss_scaling.long_runs_end_at_the_ends_of_the_range"),
    Mutant("clean steps counted through an overflow", LossScaler.update, "self.how.floor or 0.0)), 0",
           "self.how.floor or 0.0)), self.clean_steps", "loss_scaling.it_grows_after_n_clean_steps_in_a_row_and_backs_off_at_once"),
    Mutant("the ceiling is ignored", LossScaler.grown, "min(self.scale * self.how.growth, self.how.ceiling or math.inf)",
           "self.scale * self.how.growth", "clinic.apex_amp_stops_at_its_ceiling_and_goes_below_all_float32_numbers"),
    Mutant("every scaler has our floor", LossScaler.update, "self.how.floor or 0.0", "self.how.floor or 1.0",
           "clinic.a_run_of_bad_steps_takes_the_scale_to_0_where_nothing_stops_it"),
    Mutant("a scale of float32 kept in 64 bits", LossScaling.held, "if not self.in_float32", "if True",
           "clinic.keras_has_neither_floor_nor_ceiling"),
    Mutant("overflow only beyond infinity's neighbour", clinic.refusal, "largest * scale >= given.limit", "largest * scale > 65536",
           "clinic.the_limit_is_half_an_ulp_beyond_the_largest", (0,)),
    Mutant("the loss scale left in the trace", clinic.Sizes.add, "np.abs(scaled).max()) / scale", "np.abs(scaled).max())",
           "clinic.what_was_recorded_is_what_was_rounded"),
    Mutant("what underflows is counted one binade late", clinic.underflow_share, "if exponent < first", "if exponent < first - 1",
           "clinic.half_underflows_where_the_mean_is_at_the_limit"),
    Mutant("a step after an overflow goes on being recorded", clinic.GradientTrace.__call__, "self.overflowed.add(step)", "pass",
           "clinic.a_step_that_overflowed_in_the_run_is_fine_at_a_lower_scale"),
    Mutant("micro-batches not divided", trainer.one_update, "scale / divisor", "scale",
           "loss_scaling.two_micro_batches_of_the_same_windows_are_one_batch"),
    Mutant("the last micro-batch only", trainer.accumulate, "widen(total[name], np.float32) + g if name in total else g", "g",
           "loss_scaling.two_micro_batches_are_their_common_batch"),
    Mutant("gradients in the order of a set", trainer.accumulate, "[name for name in parameters if name in found]",
           "parameters.keys() & found.keys()", "loss_scaling.gradients_come_in_the_order_of_the_parameters"),

    Mutant("every micro-batch counts alike", trainer.divided, "sum(counts) / n", "len(batches)",
           "trainer.micro_batches_of_unequal_size_count_by_their_targets"),
    Mutant("as listed, but not divided", trainer.divided, '"as-listed": T', '"as-listed": 1',
           "trainer.as_listed_there_is_an_update_at_every_micro_batch"),

    Mutant("the second objective sees no step of its own", trainer.Trainer.turn_of, "other.step = self.step", "other.step = 0",
           "trainer.a_trainer_of_two_takes_turns_and_the_second_sees_what_the_first_did"),

    # a generator and a discriminator
    Mutant("a sample that nothing goes through", gan.GAN.filled, "temperature=self.shape.temperature)",
           "temperature=self.shape.temperature).detach()", "gan.the_generator_is_taught_by_the_discriminator", ("float32",)),
    Mutant("the slope of another sample", RULES["gumbel_sample"].backward, "logits, temperature, key)",
           "logits, temperature, key + 1)",
           "gan.the_gradient_of_a_sample_is_that_of_the_softmax_it_was_drawn_by"),
    Mutant("the discriminator is to be fooled by itself", gan.GAN.discriminator_loss, "[1, 0]", "[1, 1]",
           "gan.a_generator_learns_from_the_discriminator_alone"),

    # the recurrence
    Mutant("the candidate goes through a sigmoid", recurrence.slopes, "xp.concatenate([half, half, one, half])",
           "xp.concatenate([half, half, half, half])", "lstm.hidden_states_are_those_of_the_formula"),
    Mutant("a hidden token moves the state", recurrence.where_seen, "new if mask is None else xp.where(mask[:, t, None], new, old)",
           "new", "lstm.what_the_mask_hides_is_passed_by"),

    # autograd and rounding
    Mutant("unbroadcast forgotten", elementwise.unbroadcast, "if axes else g", "if False else g",
           "golden.loss_and_every_gradient_are_pytorchs", ("bias",)),
    Mutant("unbroadcast takes one of many", elementwise.unbroadcast, "g.sum(axes, dtype=g.dtype)", "g.max(axes)",
           "golden.loss_and_every_gradient_are_pytorchs", ("bias",)),
    Mutant("gradient overwritten, not added", tensor.added, "here + share", "share",
           "golden.loss_and_every_gradient_are_pytorchs", ("no bias",)),
    Mutant("a share that meets another is rounded", tensor.share_type, "shares[parent] == 1", "shares[parent] >= 1",
           "cotangents.a_share_that_is_still_to_be_summed_stays_wide"),
    Mutant("a sum is rounded before the last share has arrived", tensor.backward, "at.compute, to_come",
           "at.compute, {parent: 1}",
           "cotangents.a_sum_is_rounded_after_its_last_share"),
    Mutant("who uses a tensor twice is counted once", tensor.backward, "isinstance(at, Node) for p in at.parents",
           "isinstance(at, Node) for p in set(at.parents)",
           "cotangents.both_shares_of_a_square_stay_wide"),
    Mutant("a share rounded to nearest, then stochastically", tensor.share_type,
           'parent.context.backward == "nearest_even"', "True",
           "cotangents.a_share_is_rounded_only_if_the_recipe_would_round_it_so", ({"backward": "stochastic"}, False)),
    Mutant("a share rounded to float16, then to bfloat16", tensor.apply, "context.cotangent_of(result)", "result",
           "cotangents.a_share_is_rounded_only_if_the_recipe_would_round_it_so",
           ({"cotangents": BFLOAT16}, False)),
    Mutant("attention sees one token ahead", products.visible, "Tk - Tq", "Tk - Tq + 1",
           "gpt.a_later_token_changes_no_earlier_logit", ("float32", True)),
    Mutant("a mask of pairs passes for one of keys", beside.masks_keys, "mask.shape in ((B, 1, 1, Tk), (1, 1, 1, Tk))",
           "mask.shape[-1] == Tk", "attention.the_kernel_serves_masks_of_keys_alone"),
    Mutant("scores not scaled", products.scores, "* q.shape[-1] ** -0.5", "",
           "golden.loss_and_every_gradient_are_pytorchs", ("no bias",)),
    Mutant("truncation instead of nearest even", rounding.to_grid, "(part > word(2 ** (width - 1)))", "(part < word(0))",
           "recipes.results_name_another_format_than_the_inputs"),
    Mutant("ties away from zero", rounding.to_grid, "(part == word(2 ** (width - 1))) & odd", "(part == word(2 ** (width - 1)))",
           "rounding.every_tie_between_two_bfloats_goes_to_the_even_one", (np.float32, 1)),
    Mutant("float64 is rounded twice", rounding.round_to, "x = floats(x, format)", "x = floats(x, format).astype(np.float32)",
           "rounding.the_double_rounding_that_is_avoided"),
    Mutant("a carry past the largest value stays there", rounding.beyond_the_ends, "where(stops & (size < infinity), largest, end)",
           "where(size < infinity, largest, end)", "rounding.the_overflow_threshold_of_halves"),
    Mutant("-128 becomes -127", rounding.beyond_the_ends, "bits_of(-format.lowest)", "bits_of(format.max)",
           "rounding_modes.whole_numbers_end_at_128_below_and_127_above"),
    Mutant("overflow wraps instead of saturating", rounding.beyond_the_ends, '"saturate": largest', '"saturate": largest * 0',
           "rounding_modes.five_things_that_e4m3_means"),
    Mutant("subnormals vanish", rounding.to_grid, "bits_of(format.smallest)", "bits_of(format.tiny)",
           "rounding_peers.all_halves", (FLOAT8_E4M3, None)),
    Mutant("stochastic rounding leans upwards", rounding.to_grid, "< part >> word", "<= part >> word",
           "stochastic.few_bits_cut_the_probability_and_so_the_size", (2, np.float32, None)),
    Mutant("codes of negative whole numbers lack the complement", encoding.encode, "np.where(sign, -codes, codes)", "codes",
           "encoding.codes_by_hand"),
    Mutant("the second half of a byte is lost", encoding.pack, "count=bits", "count=bits - 1",
           "encoding.packed_bytes_are_those_of_the_format"),
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
           "optim.watchers_see_every_rounding_of_an_update", (FLOAT16,)),
    Mutant("weights cast at each use", Context.once, "if held is None", "if True",
           "recipes.a_parameter_is_cast_once_a_forward_pass_however_often_it_is_used"),
    Mutant("casts outlive no_record", Context.no_record.__wrapped__, "self.leaf_casts.clear()", "pass",
           "recipes.a_cast_made_without_recording_does_not_stand_in_for_one_that_records"),
    Mutant("bias and gain cast like the rest", recipe.Ops.plan, "(named if n in rule.wide else find)", "find",
           "recipes.every_op_of_a_float16_mixed_forward_pass_has_the_promised_formats"),
    Mutant("the shorter place wins", recipe.find, "range(len(names), 0, -1)", "range(1, len(names) + 1)",
           "recipes.the_most_exact_key_wins"),

    # the microscope
    Mutant("zeros from before counted as made", tally.tally, "(size > 0) & (after == 0)", "(after == 0)",
           "microscope.float16s_edges_are_counted_by_hand", ("off",)),
    Mutant("the tie at the end fits", tally.first_beyond, "tie if odd", "tie if not odd",
           "what_if.limits_of_float16_are_the_known_ones"),
    Mutant("exponents by floor(log2)", tally.tally, "np.frexp(x)[1] - 1",
           "np.floor(np.log2(np.where(x == 0, 1, np.abs(x)), dtype=np.float32)).astype(np.int64)",
           "microscope.exponents_are_right_below_every_power_of_two", ("off",)),
    Mutant("an update of nothing counts as lost", tally.Tally.add, "(rounded == before) & (exact != before)", "rounded == before",
           "microscope.an_update_of_nothing_is_not_lost", ("off",)),
    Mutant("block1 is taken for block10", watching.only, 'f"{event.address.scope}.".startswith(f"{place}.")',
           "event.address.scope.startswith(place)", "microscope.a_places_name_is_not_taken_for_another_that_begins_alike"),
    Mutant("what if the scale divided", what_if.WhatIf.__init__, "-np.array(self.scales", "np.array(self.scales",
           "what_if.counts_are_those_of_rounding", (FLOAT16,)),

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

    # kernels beside rules
    Mutant("a column is taken for a row", beside.ends_alike, "x.shape[x.ndim - z.ndim:] == z.shape", "x.size % z.size == 0",
           "columns.an_addition_that_repeats_otherwise_goes_to_the_rule", ((3, 4), (3, 1))),
    Mutant("columns are taken for rows", beside.last_axis, "(-1, len(shape) - 1)", "(-1, 0, 1)",
           "rowwise.what_a_softmax_kernel_cannot_do_goes_to_the_rule", ((3, 4), None, 0)),
    Mutant("a mask may spread the scores", beside.last_axis, "m in (1, n)", "m >= 1",
           "rowwise.what_a_softmax_kernel_cannot_do_goes_to_the_rule", ((1, 4), (3, 1), -1)),

    # the optimizer
    Mutant("decay on vectors too", optim.AdamW.update, "self.constants(p.ndim > 1, lr)", "self.constants(True, lr)",
           "optim.decay_is_on_matrices_only", (optim.AdamW,)),
    Mutant("no bias correction", optim.AdamW.constants, "1 / (1 - b2**self.steps)", "1",
           "golden.ten_adamw_steps_have_pytorchs_losses", ("bias",)),
    Mutant("eps in the state's format", optim.AdamW.constants, "self.eps", "float(np.float16(self.eps))",
           "optim.eps_is_added_in_float32_whatever_the_state"),
    Mutant("state kept in float32", optim.Optimizer.put, "round_to(exact, format)", "exact",
           "optim.state_is_kept_in_its_format", (optim.AdamW, FLOAT16)),
    Mutant("squared before unscaled", clipping.sum_of_squares_of, "np.square(widen(g, np.float32) * factor)",
           "(np.square(widen(g, np.float32)) * factor * factor)",
           "optim.the_norm_of_nothing_and_of_the_very_large"),
    Mutant("clipping scales small gradients up", optim.clip_factor, "min(1.0, clip / (norm + 1e-6))", "clip / (norm + 1e-6)",
           "optim.clipping_bounds_the_norm_and_never_scales_up"),
    Mutant("warm-up starts at 0", optim.cosine_schedule, "(step + 1)", "step", "optim.the_schedule_is_the_published_formula"),

    # published recipes and eight-bit products
    Mutant("a refusal that lets pass", recipe.Ops.prepare, 'if cast == "as is"', 'if cast in ("as is", "refuse")',
           "published.binary_cross_entropy_on_probabilities_is_refused", ("apex-O1", FLOAT16)),
    Mutant("the widest is the narrowest", recipe.Ops.prepare, "max((t.format", "min((t.format",
           "published.mixed_inputs_are_promoted", ("apex-O1",)),
    Mutant("a scale is not undone", float8.float8_product, "((1 / a_scale) * (1 / b_scale))", "(1 / a_scale)",
           "float8.a_product_of_values_on_the_grid_is_exact", (float8.FLOAT8_CURRENT,)),
    Mutant("an infinite amax gives a scale of 0", float8.current_scale, "0 < amax < xp.inf", "amax > 0",
           "float8.the_scale_brings_the_largest_value_to_the_formats_largest", (FLOAT8_E4M3, [math.inf, 1.0], None)),
    Mutant("no saturation", float8.quantized, "xp.clip(x * scale, -format.max, format.max)", "x * scale",
           "float8.values_that_are_not_finite_saturate_or_stay_nan", (FLOAT8_E4M3,)),
    Mutant("the larger power of two", float8.current_scale, "[1] - 1)", "[1])",
           "float8.values_of_the_scaled_grid_are_kept_as_they_are", (FLOAT8_E4M3, True, 0)),
    Mutant("blocks are rounded across the summed dimension", block_scaling.block_product,
           "b.swapaxes(-1, -2), format, up).swapaxes(-1, -2)", "b, format, up)",
           "block_scaling.blocks_of_both_operands_run_along_the_summed_dimension", (block_scaling.MXFP8_UP, 100)),
    Mutant("a block scale rounded down that is to go up", block_scaling.exponents, "part > largest", "part > 1",
           "block_scaling.every_value_is_within_its_bound", (FLOAT8_E4M3, True)),
    # compiled products
    Mutant("other bytes pass for int8", kernels.load("matmul").check, "given not in accepted",
           "given.itemsize not in {each.itemsize for each in accepted}",
           "matmul.int8_takes_batches_and_refuses_what_is_not_int8_or_too_deep"),
    Mutant("int8 sums one too deep", kernels.load("matmul").checked_shape, "a[1][-1] > LONGEST", "a[1][-1] > LONGEST + 1",
           "matmul.int8_takes_batches_and_refuses_what_is_not_int8_or_too_deep"),
    Mutant("every matrix of a batch is its first", kernels.load("matmul").offsets, "total += np.arange", "total += 0 * np.arange",
           "matmul.batches_broadcast_and_each_is_the_product_by_itself", ((2, 1), (3,), "plain")),
    Mutant("a gradient rounded that was to stay wide", kernels.load("products").linear_vjp, "out=out[1]", "out=np.float16",
           "matmul.linear_and_its_gradients_are_within_their_bounds"),

    # weights without a master copy, moments in eight bits
    Mutant("compensation never added back", optim.Optimizer.weight, "w + widen(lost, np.float32)", "w",
           "low_precision_updates.many_updates_that_would_be_lost_one_by_one", (BFLOAT16,)),
    Mutant("compensation of the wrong sign", optim.Optimizer.write, "exact - widen(p.data, np.float32)",
           "widen(p.data, np.float32) - exact",
           "low_precision_updates.weight_and_compensation_are_the_exact_sum_each_rounded_once", (BFLOAT16, optim.SGD)),
    Mutant("stochastic updates rounded to nearest", optim.Optimizer.write,
           '"stochastic" if self.how == "stochastic" else "nearest_even"', '"nearest_even"',
           "low_precision_updates.the_expected_stochastic_update_is_the_exact_one", (BFLOAT16, 0.25)),
    Mutant("random bits from steps, not attempts", optim.Optimizer.rounded, "step=self.attempt", "step=self.steps",
           "low_precision_updates.the_bits_are_those_of_seed_attempt_and_name"),
    Mutant("the attempt is not handed on", trainer.one_update, "/ scale, step)", "/ scale)",
           "low_precision_updates.a_training_step_hands_on_the_number_of_its_attempt"),
    Mutant("eight-bit moments are used as they come back", optim.Optimizer.keep, "if format else exact", "if True else exact",
           "eight_bit.a_v_that_is_stored_as_zero_does_not_divide_by_eps"),
    Mutant("ties to the upper neighbour", eight_bit.nearest, "< scaled", "<= scaled",
           "eight_bit.a_tie_goes_to_the_lower_neighbour", (optim.DYNAMIC8, True)),

    # the bench
    Mutant("ours over the peer's", measure.ratio, "b / a", "a / b",
           "bench.a_row_for_each_peer_with_the_ratio_of_times"),
    Mutant("billions counted as units", measure.rows, 'unit.startswith("G")', "False",
           "bench.a_row_for_each_peer_with_the_ratio_of_times"),
    Mutant("the ratio of medians", measure.ratio, "b / a for a, b in zip(ours, itertools.cycle(theirs), strict=False)",
           "[statistics.median(theirs) / statistics.median(ours)]", "bench.the_ratio_is_the_median_of_those_of_neighbours"),
    Mutant("a cotangent that is read for nothing", rowwise.traffic, "(4 if way", "(3 if way",
           "bench.traffic_counts_what_must_be_read_and_written"),

    # the model
    Mutant("residual weights not made smaller", Block.__init__, "(2 * layers)", "1", "gpt.initial_weights_have_gpt2s_deviations"),
    Mutant("positions start at 0 behind a cache", gpt.GPT.forward, "np.arange(start, start + T", "np.arange(0, T",
           "gpt.generation_is_the_uncached_one_also_beyond_the_context", ("float32",)),
    Mutant("the first tokens are read beyond the context", gpt.GPT.generate, "ids[-T:]", "ids[:T]",
           "gpt.generation_is_the_uncached_one_also_beyond_the_context", ("float32",)),
    Mutant("the cache forgets its last token", KeyValueCache.extend, "self.keys.read(self.count), self.values.read(self.count)",
           "self.keys.read(max(first, 1)), self.values.read(max(first, 1))",
           "gpt.generation_is_the_uncached_one_also_beyond_the_context", ("float32",)),
    Mutant("one scale for all heads of a token", Int8Rows.write, "reshape(B, new, H, C // H))", "reshape(B, new, 1, C))",
           "generation.int8_rows_are_codes_by_token_and_head"),
    Mutant("casts outlive an update in place", Context.begin, "if not self.keeps_casts", "if False",
           "generation.no_text_is_made_with_the_weights_of_yesterday", ("float16-mixed", "off")),
    Mutant("a compiled token stands too early", decoding.Decoder.after_one, "self.positions(position)",
           "self.positions(position - 1)", "generation.a_compiled_token_has_the_logits_of_a_whole_pass", ("float32", True)),
    Mutant("a table's row without its scale", decoding.table, "codes[i] * scale[i]", "codes[i] * scale[0]",
           "generation.a_token_finds_the_row_of_an_int8_table"),
    Mutant("scales of the wrong rows", QuantizedMatrix.apply, "(scale * self.weight.scale)", "(scale * self.weight.scale[::-1])",
           "generation.int8_products_are_exact", ("off", 32)),
    Mutant("of an int8 product only the last part", int8_products.int8_product, "total = total + part", "total = part",
           "generation.int8_products_are_exact", ("off", 3000)),
    Mutant("a zero point added after rounding", affine.codes_of, "halves(quotient + zero_point)", "halves(quotient) + zero_point",
           "affine.a_zero_point_outside_the_rounding_differs_at_every_tie_to_even_where_it_is_odd"),
    Mutant("integers wrap", affine.codes_of, "np.clip(code, scheme.grid.lowest, scheme.grid.highest)", "((code + 128) % 256 - 128)",
           "affine.error_counts_what_was_clipped_and_how_far"),
    Mutant("a quotient rounded to float32 first", affine.codes_of, "dtype=np.float64", "dtype=np.float32",
           "int8_rounding.what_lies_just_beside_a_half_is_not_rounded_onto_it_first"),
    Mutant("a step learns from what is inside the grid alone", RULES["lsq"].backward, "xp.clip(v, lowest, highest))", "0)",
           "fake_quant.a_learned_step_has_the_slope_of_its_paper"),
    Mutant("what is clipped has a gradient", RULES["lsq"].backward, "(rows * inside)", "rows",
           "fake_quant.a_learned_step_has_the_slope_of_its_paper"),
    Mutant("a share learns slowly", RULES["share_of_range"].backward, "scale = FASTER", "scale = 1",
           "fake_quant.the_slope_of_a_share_is_that_of_the_step_it_makes"),
    Mutant("what a share clips has no gradient", RULES["share_of_range"].backward, "return g,",
           "return g * (abs(v) <= 7).reshape(g.shape),",
           "fake_quant.a_learned_share_begins_with_the_whole_range_and_gradients_go_straight_through"),
    Mutant("ternary layers forget to normalize", trained.ternary_matrix, "normalized=isinstance(of_inputs, NormalizedFake)",
           "normalized=False", "conversion.ternary_weights_are_those_of_training"),
    Mutant("GELU without its tail", RULES["gelu_erf"].forward, "size * upper_tail(xp, size)", "0 * size",
           "bert.gelu_erf_is_x_times_the_share_below_x", (np.float32, 8 * 2.0**-24)),
    Mutant("padding is seen", bert.Encoder.hidden, "ids != self.shape.padding", "ids != -1",
           "bert.a_token_sees_every_other_and_no_padding", ("albert",)),
    Mutant("every layer has a block of its own", bert.Encoder.blocks.fget, "for i in range(self.shape.layers)",
           "for i in range(1 if self.shape.shared else self.shape.layers)", "bert.albert_passes_one_block_many_times"),
    Mutant("a pickle may ask for anything", torch_file.known, "name not in (DICTIONARY, TENSOR, *NUMBERS)", "False",
           "pretrained.a_pickle_that_asks_for_something_else_is_refused"),
    Mutant("GPTQ corrects nothing", gptq.gptq, "W[:, i:] -=", "_ =",
           "conversion.gptq_corrects_as_solving_for_the_rest_would", (False,)),
    Mutant("GPTQ in the order of its columns", gptq.gptq, "if activation_order else np.arange", "if False else np.arange",
           "conversion.gptq_corrects_as_solving_for_the_rest_would", (True,)),
    Mutant("the table is converted for its head alone", convert.one_matrix, "both_uses(inputs) if tied", "inputs if tied",
           "bits.the_table_is_made_for_both_its_uses_and_no_other_matrix_is", ("gptq",)),
    Mutant("what a cut range takes is not made good", awq.cut, "found.scale * gain.reshape(found.scale.shape)", "found.scale",
           "bits.a_cut_range_keeps_the_size_of_what_its_weights_put_out", (affine.Scheme(affine.grid(3)),)),
    Mutant("no range is cut", awq.cut, "np.where(error < least, share, best)", "best",
           "bits.cutting_off_the_largest_weights_pays_where_bits_are_few", (2,)),
    Mutant("outliers are multiplied twice", QuantizedMatrix.apply, "x[:, self.outliers] = 0", "pass",
           "conversion.outliers_cost_least_where_they_are_kept_apart"),
    Mutant("smoothed weights, inputs as they were", QuantizedMatrix.apply, "x = x / self.divide", "pass",
           "conversion.smoothing_is_best_half_way"),
    Mutant("the first code in the low bits", packing.pack, "[:, 8 - grid.bits:]", "[:, :8 - grid.bits - 1:-1]",
           "affine.two_codes_of_four_bits_are_one_byte_the_first_in_the_high_half"),
    Mutant("a float mean in an integer layer norm", integer_ops.normalized,
           "divide(x.sum(-1, keepdims=True, dtype=np.int64), x.shape[-1])", "np.rint(x.mean(-1, keepdims=True)).astype(np.int64)",
           "integer_model.no_float_comes_between_ids_and_logits", ("single",)),
    Mutant("halves of negative numbers go up", fixed_point.double, "np.sign(high) * ((np.abs(high) + half) >> out)",
           "(high + half) >> out", "fixed_point.every_tie_of_small_numbers", ("double",)),
    Mutant("codes wrap instead of saturating", fixed_point.requantize, "np.clip(multiply(x, by, rounding), -highest, highest)",
           "multiply(x, by, rounding)", "fixed_point.codes_saturate_and_never_wrap"),
    Mutant("the zero point's share added, not taken away", integer_model.Converter.linear, "bias / unit - zero",
           "bias / unit + zero", "integer_model.layers_say_how_far_off_they_are"),
    Mutant("integer attention sees one token ahead", IntegerAttention.forward, "np.arange(Tk) <= np", "np.arange(Tk) <= 1 + np",
           "integer_model.the_whole_pass_equals_the_oracle", ("single", 16, "off")),
    Mutant("how often, not before how many", ngram.NGram.fit, "k < self.order", "False",
           "ngram.probabilities_are_those_of_the_definition_and_sum_to_one", ((0,),)),
    Mutant("one discount too few is handed on", ngram.level, "discounts[np.minimum(counts, 3)]", "discounts[np.minimum(counts, 2)]",
           "ngram.probabilities_are_those_of_the_definition_and_sum_to_one", ((0,),)),
    Mutant("pruned weights keep their moments", pruning.forget, "optimizer.state[slot][name][~mask] = 0", "pass",
           "pruning.what_is_away_stays_away_with_its_moments", ("float32", {})),
    Mutant("2:4 forgets the fours", pruning.largest, 'pattern == "2:4"', "False",
           "pruning.what_stays_is_no_smaller_than_what_goes"),
    Mutant("movement of scaled gradients", pruning.Pruner.follow, " / np.float32(self.trainer.objective.scaler.scale)", "",
           "pruning.movement_is_the_sum_of_minus_gradient_times_weight_whatever_the_loss_scale"),
    Mutant("zeros stay in the model that was searched", structure.Search.loss, "w.data = data\n", "pass\n",
           "structure.cut_arrays_give_the_loss_of_zeros", (("block0.head1",), True)),
    Mutant("the dearest part goes first", structure.prune_structure, "candidates.sort(key=lambda part: costs[part]",
           "candidates.sort(key=lambda part: -costs[part]", "structure.the_cheapest_goes_first_and_the_budget_is_kept"),
    Mutant("soft targets lose their size", distillation.distill, "soft * temperature**2", "soft",
           "ensemble.the_loss_of_a_student_is_put_together_as_published", (0.25,)),
    Mutant("padding is learned from teachers", distillation.distill, "targets != NO_TARGET", "None",
           "strategy_runs.padding_teaches_a_student_nothing"),
    Mutant("one logit is not halved", distillation.beside_zero, "[-0.5, 0.5]", "[-1, 1]",
           "strategy_runs.a_student_of_a_sure_teacher_with_one_logit_answers_like_it"),
    Mutant("the likelier class of an ensemble is the other", ensemble.Ensemble.__call__, "log_p[:, 1] - log_p[:, 0]",
           "log_p[:, 0] - log_p[:, 1]", "strategy_runs.an_ensemble_of_two_class_lstms_answers_by_the_mean_of_both"),
    Mutant("padding is to be guessed", joint.with_hidden, "filled(ids, T, PAD)", "filled(ids, T, 7)",
           "strategy_runs.texts_of_another_length_are_filled_up"),
    Mutant("a sum of probabilities, not a mean", ensemble.mean_probabilities, "total / np.float32(len(models))", "total",
           "ensemble.probabilities_are_the_mean_of_softmaxes", ("float32",)),
    Mutant("errors in the other words", robustness.text_with_errors, "< rate)", ">= rate)",
           "text_errors.about_as_many_words_have_an_error_as_asked", ("typos",)),
    Mutant("all texts have the same errors", robustness.accuracy_under_errors, "(seed, i)", "seed",
           "text_errors.accuracy_is_that_of_texts_with_errors"),
    Mutant("all hidden words are masked", masking.masked, "fate < HIDDEN,", "fate < 1,",
           "pretraining.of_the_words_a_share_is_chosen_and_of_these_most_are_masked_some_replaced_some_left"),
    Mutant("nothing moves over", pretraining.carry_over, "own[name].data = ", "_ = ",
           "pretraining.the_encoder_moves_over_and_the_heads_stay", ("float32",)),
    Mutant("the unsupervised loss counts once", joint.JointModel.loss, " * self.weight", "",
           "pretraining.the_joint_gradient_is_the_sum_of_the_two", (0.5,)),
    Mutant("every label is believed", self_training.pseudo_labels, "> np.float32(threshold) * ", "> np.float32(0) * ",
           "pretraining.only_labels_above_the_threshold_are_believed"),
    Mutant("noise forgotten", gpt.choose, "np.float32(temperature) + noise", "np.float32(temperature)",
           "gpt.samples_follow_the_softmax", (1.0, 0)),
    Mutant("temperature multiplies", gpt.choose, "logits / np.float32", "logits * np.float32",
           "gpt.samples_follow_the_softmax", (2.0, 0)),
    Mutant("loading begins before all is checked", Module.load_state_dict, "array.shape != state[name].shape or ", "",
           "gpt.loading_is_all_or_nothing", (lambda: make(channels=16).state_dict(), "tokens.weight")),

    # tasks and their scores
    Mutant("a 零 for each missing unit", numbers.chinese, """re.sub("零+", "零", spelled)""", "spelled",
           "translation.chinese_follows_the_stated_rule"),
    Mutant("each example is a subject of its own", real.parts, "groups.setdefault(subject, [])", "groups.setdefault(example, [])",
           "real_tasks.examples_about_one_subject_stay_together"),
    Mutant("held-out examples teach a class, too", examples.Task._check_labels, "for example in self.train}",
           "for example in (*self.train, *self.held_out)}", "tasks.a_class_that_is_only_held_out_cannot_be_learned"),
    Mutant("the weight of a loss forgotten", answering.weighted_targets, "* weights", "* np.ones_like(weights)",
           "many_tasks.a_weight_reaches_the_gradients_of_its_examples"),
    Mutant("every group has all targets", answering.Answering.weighted, "group[:, None], targets", "targets != NO_TARGET, targets",
           "many_tasks.a_weight_reaches_the_gradients_of_its_examples"),
    Mutant("the source is asked for, too", readers.ContinuationReader.batch, ">= begins", ">= 0",
           "task_runs.a_continuation_reader_asks_for_the_answer_and_for_nothing_before_it"),
    Mutant("a beam forgets whose keys it has", answering.Writer.keep, "if cache.count", "if False",
           "answering.a_beam_wide_enough_finds_the_best_of_all_answers", ("gpt",)),
    Mutant("long answers are dearer", answering.beam, "/ length", "/ 1",
           "answering.a_beam_wide_enough_finds_the_best_of_all_answers", ("seq2seq",)),
    Mutant("an ensemble writes without what it has written", ensemble.Rereader.after, "[self.ids, ids]", "[self.ids[:, :-1], ids]",
           "answering.greedy_takes_the_most_likely_token_each_time_and_stops_at_the_end", ("ensemble", "float32")),
    Mutant("micro-batches by number, not by weight", TaskData.targets, "if self.weights", "if False",
           "many_tasks.weighted_micro_batches_are_one_big_batch"),
    Mutant("BLEU's smoothing does not halve again", scores.smoothed, "halves / 2", "0.5", "scores.bleu_by_hand"),
]


@pytest.fixture
def plans_forgotten():
    """Forgets how products were planned: with a bug in it a plan is another, and nobody after this test may get that one."""
    forget = kernels.load("matmul").plan.cache_clear
    yield forget
    forget()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_named_test_fails_with_the_bug_and_passes_without(mutant, kernels_off, plans_forgotten, monkeypatch):
    mutant.run()
    monkeypatch.setattr(mutant.function, "__code__", mutant.code())
    plans_forgotten()
    with pytest.raises(FAILURES):
        mutant.run()


def test_names_of_mutants_differ():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
