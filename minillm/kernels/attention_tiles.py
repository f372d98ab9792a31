"""The steps of attention that stay in vector registers: a tile of scores and what becomes of it, rows, and squares on their side.

A tile is ROWS x WIDTH sums, enough of them to hide the four cycles that each waits for its last addition. The left operand
is read a value at a time, the right one and the result a row at a time; sums run over the depth in order. Arrays are
flat, an offset follows each.

In a tile of scores a row is a key and a lane is a query: so a query's largest score, its sum and its correction are a lane of a
vector, and nothing is ever added across lanes. `ahead` is the number of the tile's first key less that of its first query.
"""
from numba import types
from numba.extending import intrinsic

from minillm.kernels.vectors import (
    HALVES,
    LANES,
    LONG,
    VECTOR,
    constant,
    at,
    emitter,
    exponential,
    from_lane,
    integers,
    larger,
    load,
    multiply_add,
    repeat,
    spread,
    store,
)

ROWS, VECTORS = LANES // 2, 2                    # 16 of AVX-512's 32 registers hold sums, or 8 of 16
WIDTH = VECTORS * LANES
N = types.intp


def sums_of(b, left, row_step, depth_step, right, right_step, depth, sums):
    """Sums += sum over k < depth of left[row, k] right[k]; row by row, VECTORS vectors each."""
    def body(k, carried):
        left, right, *sums = carried
        columns = [load(b, right, v * LANES) for v in range(VECTORS)]
        for row in range(ROWS):
            value = spread(b, b.load(at(b, left, b.mul(row_step, LONG(row)))))
            for v, column in enumerate(columns):
                sums[row * VECTORS + v] = multiply_add(b, value, column, sums[row * VECTORS + v])
        return [at(b, left, depth_step), at(b, right, right_step), *sums]
    return repeat(b, depth, [left, right, *sums], body)[2:]


def places_of(b, tile, step):
    """Where the vectors of a tile lie in memory."""
    return [at(b, at(b, tile, b.mul(step, LONG(row))), v * LANES) for row in range(ROWS) for v in range(VECTORS)]


def product_tile(turned, left_step):
    """out += left @ right; left is [row, k] with rows `left_step` apart, or, turned, [k, row]."""
    steps = (1, left_step) if turned else (left_step, 1)

    @intrinsic
    def tile(typingctx, left, l, right, r, right_step, out, o, out_step, depth):
        def emit(b, left, l, right, r, right_step, out, o, out_step, depth):
            places = places_of(b, at(b, out, o), out_step)
            sums = sums_of(b, at(b, left, l), LONG(steps[0]), LONG(steps[1]), at(b, right, r), right_step, depth,
                           [load(b, place) for place in places])
            for place, total in zip(places, sums, strict=True):
                store(b, total, place)
        return types.void(left, N, right, N, N, out, N, N, N), emitter(emit)
    return tile


def scores_of(b, keys, k, key_step, queries, r, out, o, out_step, depth):
    """A tile of scores, keys[key, d] queries[d, query], and where its vectors are to lie; queries are `out_step` apart, too."""
    sums = sums_of(b, at(b, keys, k), key_step, LONG(1), at(b, queries, r), out_step, depth, [constant(0)] * (ROWS * VECTORS))
    return sums, places_of(b, at(b, out, o), out_step)


def hidden(b, diagonal, ahead, values, instead):
    """The tile with `instead` where the key comes after the query."""
    if not diagonal:
        return values
    seen = [from_lane(b, b.add(ahead, LONG(row - v * LANES))) for row in range(ROWS) for v in range(VECTORS)]
    return [b.select(s, value, constant(instead)) for s, value in zip(seen, values, strict=True)]


def lanes_of(b, numbers, n):
    """A number for each query, ready for each vector of a tile."""
    return [load(b, numbers, b.add(n, LONG(v * LANES))) for v in range(VECTORS)] * ROWS


def score_tile(diagonal):
    """out = scores, -inf where hidden; `top` becomes the largest so far."""
    @intrinsic
    def tile(typingctx, keys, k, key_step, queries, r, out, o, out_step, depth, top, t, ahead):
        def emit(b, keys, k, key_step, queries, r, out, o, out_step, depth, top, t, ahead):
            sums, places = scores_of(b, keys, k, key_step, queries, r, out, o, out_step, depth)
            sums = hidden(b, diagonal, ahead, sums, -float("inf"))
            for v, most in enumerate(lanes_of(b, top, t)[:VECTORS]):
                for row in range(ROWS):
                    store(b, sums[row * VECTORS + v], places[row * VECTORS + v])
                    most = larger(b, sums[row * VECTORS + v], most)
                store(b, most, top, b.add(t, LONG(v * LANES)))
        return types.void(keys, N, N, queries, N, out, N, N, N, top, N, N), emitter(emit)
    return tile


def weight_tile(diagonal):
    """out = exp(scores - top) share, 0 where hidden."""
    @intrinsic
    def tile(typingctx, keys, k, key_step, queries, r, out, o, out_step, depth, top, share, t, ahead):
        def emit(b, keys, k, key_step, queries, r, out, o, out_step, depth, top, share, t, ahead):
            sums, places = scores_of(b, keys, k, key_step, queries, r, out, o, out_step, depth)
            weights = [b.fmul(exponential(b, b.fsub(s, most)), part)
                       for s, most, part in zip(sums, lanes_of(b, top, t), lanes_of(b, share, t), strict=True)]
            for place, weight in zip(places, hidden(b, diagonal, ahead, weights, 0), strict=True):
                store(b, weight, place)
        return types.void(keys, N, N, queries, N, out, N, N, N, top, share, N, N), emitter(emit)
    return tile


def cotangent_tile(diagonal):
    """out = values @ cotangents, 0 where hidden; `mean` grows by the sum over the tile's keys of weights times out."""
    @intrinsic
    def tile(typingctx, values, k, value_step, cotangents, r, out, o, out_step, depth, weights, mean, t, ahead):
        def emit(b, values, k, value_step, cotangents, r, out, o, out_step, depth, weights, mean, t, ahead):
            sums, places = scores_of(b, values, k, value_step, cotangents, r, out, o, out_step, depth)
            sums, weights = hidden(b, diagonal, ahead, sums, 0), places_of(b, at(b, weights, o), out_step)
            for v, total in enumerate(lanes_of(b, mean, t)[:VECTORS]):
                for row in range(ROWS):
                    store(b, sums[row * VECTORS + v], places[row * VECTORS + v])
                    total = multiply_add(b, load(b, weights[row * VECTORS + v]), sums[row * VECTORS + v], total)
                store(b, total, mean, b.add(t, LONG(v * LANES)))
        return types.void(values, N, N, cotangents, N, out, N, N, N, weights, mean, N, N), emitter(emit)
    return tile


@intrinsic
def exponentials(typingctx, scores, s, step, count, top, total, t):
    """Scores become exp(scores - top) for WIDTH queries and `count` keys; `total` grows by their sum."""
    def emit(b, scores, s, step, count, top, total, t):
        scores, tops = at(b, scores, s), lanes_of(b, top, t)

        def body(key, totals):
            row, new = at(b, scores, b.mul(key, step)), []
            for v in range(VECTORS):
                e = exponential(b, b.fsub(load(b, row, v * LANES), tops[v]))
                store(b, e, row, v * LANES)
                new.append(b.fadd(totals[v], e))
            return new
        for v, grown in enumerate(repeat(b, count, lanes_of(b, total, t)[:VECTORS], body)):
            store(b, grown, total, b.add(t, LONG(v * LANES)))
    return types.void(scores, N, N, N, top, total, N), emitter(emit)


@intrinsic
def score_cotangents(typingctx, cotangents, weights, s, step, count, mean, t):
    """Cotangents of weights become those of scores, weights (cotangents - mean), for WIDTH queries and `count` keys."""
    def emit(b, cotangents, weights, s, step, count, mean, t):
        means = lanes_of(b, mean, t)

        def body(key, _):
            row = b.add(s, b.mul(key, step))
            for v in range(VECTORS):
                place = b.add(row, LONG(v * LANES))
                store(b, b.fmul(load(b, weights, place), b.fsub(load(b, cotangents, place), means[v])), cotangents, place)
            return []
        repeat(b, count, [], body)
    return types.void(cotangents, weights, N, N, N, mean, N), emitter(emit)


@intrinsic
def scale_row(typingctx, row, r, vectors, factor):
    """A row of so many vectors times a number."""
    def emit(b, row, r, vectors, factor):
        factor = spread(b, factor)

        def body(turn, _):
            place = b.add(r, b.mul(turn, LONG(LANES)))
            store(b, b.fmul(load(b, row, place), factor), row, place)
            return []
        repeat(b, vectors, [], body)
    return types.void(row, N, N, types.float32), emitter(emit)


@intrinsic
def move(typingctx, source, s, out, o, factor):
    """LANES values times a number, from float32 or float16 bits to float32 or float16 bits, rounded once."""
    def emit(b, source, s, out, o, factor):
        half_in, half_out = (kind.dtype == types.uint16 for kind in kinds)
        x = load(b, source, s, HALVES if half_in else VECTOR)
        x = b.fmul(b.fpext(x, VECTOR) if half_in else x, spread(b, factor))
        store(b, b.fptrunc(x, HALVES) if half_out else x, out, o)
    kinds = source, out
    return types.void(source, N, out, N, types.float32), emitter(emit)


@intrinsic
def turn_square(typingctx, x, i, x_step, y, j, y_step):
    """LANES x LANES values on their side: halves of 1, 2, 4, ... lanes change places between pairs of rows."""
    def emit(b, x, i, x_step, y, j, y_step):
        rows = [load(b, x, b.add(i, b.mul(x_step, LONG(row)))) for row in range(LANES)]
        for width in (w for w in (1, 2, 4, 8) if w < LANES):
            low = integers(LANES + lane - width if lane & width else lane for lane in range(LANES))
            high = integers(LANES + lane if lane & width else lane + width for lane in range(LANES))
            for row in (row for row in range(LANES) if not row & width):
                pair = rows[row], rows[row + width]
                rows[row], rows[row + width] = b.shuffle_vector(*pair, low), b.shuffle_vector(*pair, high)
        for row in range(LANES):
            store(b, rows[row], y, b.add(j, b.mul(y_step, LONG(row))))
    return types.void(x, N, N, y, N, N), emitter(emit)
