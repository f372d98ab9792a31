"""Tensor, the one dispatcher that applies a rule and rounds once, and the backward pass."""
import numbers
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minillm.autograd.context import PLAIN, Address, Context
from minillm.autograd.kernels import Kernel, kernel_for
from minillm.autograd.rule import RULES, Rule
from minillm.autograd.rules.products import FLOAT32_PRODUCTS
from minillm.autograd.watching import tell, watched
from minillm.backend import array_module
from minillm.errors import MiniLLMError, MixedFormats
from minillm.formats import FLOAT16, FLOAT32, Format
from minillm.rounding import round_to, widen


class Tensor:
    """An array and its format; floating formats only. A tensor with a name is a leaf and gets a gradient.

    Ids, targets, masks and positions are plain arrays. `x + y`, `x @ w`, `x.to(FLOAT16)` and the like compute in float32 and round
    once into the format of x; a model calls its recipe's ops instead.
    """

    __slots__ = ("data", "format", "name", "node")
    __array_ufunc__ = None           # array + tensor is an error, not an array of tensors

    def __init__(self, data, format: Format = FLOAT32, node: "Node | None" = None, name: str | None = None):
        if data.dtype != format.storage:
            raise MiniLLMError(f"a {format.name} tensor holds {np.dtype(format.storage)} arrays, not {data.dtype}: round with "
                               f"minillm.tensor(values, {format!r})")
        self.data, self.format, self.node, self.name = data, format, node, name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def needs_gradient(self) -> bool:
        return self.node is not None or self.name is not None

    def detach(self) -> "Tensor":
        """The same values, of which no gradient is taken."""
        return Tensor(self.data, self.format)

    def item(self) -> float:
        """The one value as a Python number."""
        return self.data.item()

    def __bool__(self) -> bool:
        if self.size != 1:
            raise MiniLLMError(f"a tensor of shape {self.shape} has no truth value: compare its .data, or reduce it to one element")
        return bool(self.data.reshape(())[()])

    def __array__(self, *_, **__):
        raise MiniLLMError("a tensor is no NumPy array, which would be one of tensors: pass its .data")

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        return f"Tensor({np.array2string(np.asarray(self.data), threshold=20, separator=', ')}, {self.format!r}{name})"

    def _op(self, op, *inputs, **static):
        node = next((t.node for t in inputs if isinstance(t, Tensor) and t.node), None)
        return apply(RULES[op], *inputs, context=node.context if node else PLAIN, **static)

    def to(self, format: Format) -> "Tensor":
        """Cast: the values rounded into another format; the tensor itself if it has that format."""
        return self if format is self.format else self._op("cast", self, result=format)

    def __add__(self, other):
        return self._op("add", self, other)

    def __radd__(self, other):
        return self._op("add", other, self)

    def __sub__(self, other):
        return self._op("sub", self, other)

    def __rsub__(self, other):
        return self._op("sub", other, self)

    def __mul__(self, other):
        return self._op("mul", self, other)

    def __rmul__(self, other):
        return self._op("mul", other, self)

    def __truediv__(self, other):
        return self._op("div", self, other)

    def __rtruediv__(self, other):
        return self._op("div", other, self)

    def __pow__(self, other):
        return self._op("pow", self, other)

    def __neg__(self):
        return self._op("neg", self)

    def __matmul__(self, other):
        return self._op("matmul", self, other)

    def __getitem__(self, index):
        return self._op("slice", self, index=index)

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[i] for i in range(len(self)))

    def sum(self, axis=None, keepdims=False):
        return self._op("sum", self, axis=axis, keepdims=keepdims)

    def mean(self, axis=None, keepdims=False):
        return self._op("mean", self, axis=axis, keepdims=keepdims)

    def max(self, axis=None, keepdims=False):
        return self._op("max", self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape):
        return self._op("reshape", self, shape=shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes):
        return self._op("transpose", self, axes=(axes[0] if len(axes) == 1 and isinstance(axes[0], tuple) else axes) or None)


def tensor(values, format: Format = FLOAT32, name: str | None = None) -> Tensor:
    """A tensor from Python numbers or a float array, rounded into the format. float64 arrays are rounded from their own bits.

    Raises MiniLLMError for ids and masks, which stay plain arrays.
    """
    if not isinstance(values, np.ndarray | np.generic):
        values = np.asarray(values, np.float64)          # what Python numbers are; float32 on the way would round twice
    return Tensor(np.asarray(round_to(np.asarray(values), format)), format, name=name)


NOTHING = {}


@dataclass(eq=False, slots=True)
class Node:
    """One op in the graph. It points at nodes and leaves, never at their arrays: only what the vjp names is alive."""

    rule: Rule
    kernel: Kernel | None    # that forward was computed with, and so the vjp
    parents: tuple
    kept: dict | None
    cotangent: Format        # of the output's: its own, or what the recipe names for narrow ones
    shape: tuple
    compute: type
    address: Address
    context: Context


def common_format(rule: Rule, names, inputs) -> Format:
    """The format of the first input that no rule allows to be wider than the others."""
    for name, x in zip(names, inputs, strict=True):
        if isinstance(x, Tensor) and name not in rule.wide:
            return x.format
    raise MiniLLMError(f"{rule.name} needs a Tensor among its inputs: make one with minillm.tensor(values)")


def taken_apart(rule: Rule, names, inputs, given: Format) -> tuple[list, list]:
    """The inputs' arrays, and of each where its cotangent goes, None for nowhere. They are of one format, wide ones of a wider."""
    arrays, parents = [], []
    for name, x in zip(names, inputs, strict=True):
        if isinstance(x, Tensor):
            if x.format is not given or name in rule.plain:
                check_format(rule, name, x, given)
            arrays.append(x.data)
            parents.append(x.node or (x if x.name else None))
        else:
            arrays.append(x if x is None else stored(rule, name, x, given.compute))
            parents.append(None)
    return arrays, parents


def check_format(rule, name, x, given):
    """MiniLLMError for a tensor where a plain array belongs, or one of another format than `given` that may not be wider."""
    if name in rule.plain:
        raise MiniLLMError(f"{rule.name}: {name} is a plain array, not a Tensor: pass its .data")
    if not (name in rule.wide and x.format.bits > given.bits):
        wide, narrow = sorted((given, x.format), key=lambda f: -f.bits)
        raise MixedFormats(f"{rule.name}: {given.name} and {x.format.name} do not mix: cast one, e.g. x.to({wide!r}) of the "
                           f"{narrow.name} one")


def stored(rule: Rule, name: str, x, compute):
    """The array behind an input that is no tensor: a number's in the compute format, a plain one where the rule takes one."""
    if name in rule.plain:
        return x
    if isinstance(x, numbers.Real):
        return np.asarray(x, compute)
    raise MiniLLMError(f"{rule.name}: {name} is {type(x).__name__}, not a Tensor: make one with minillm.tensor(values)")


def widened(x, compute):
    return widen(x, compute) if getattr(getattr(x, "dtype", None), "kind", "") == "f" else x


def as_array(x):
    """NumPy gives a scalar where a result has no axes: make it an array again."""
    return np.asarray(x) if isinstance(x, np.generic) else x


def by_rule(rule, names, arrays, static, compute):
    """What the rule makes of arrays, in the compute format."""
    xp = array_module(next(a for a in arrays if a is not None))
    wide = (a if n in rule.plain else widened(a, compute) for n, a in zip(names, arrays, strict=True))
    with np.errstate(all="ignore"):                      # infinities and NaN are values here: they travel and are reported
        out = rule.forward(xp, *wide, **static)
    return (as_array(out[0]), out[1]) if isinstance(out, tuple) else as_array(out)


def apply(rule: Rule, *inputs, context: Context = PLAIN, result: Format | None = None, **static) -> Tensor:
    """The one dispatcher: check formats, compute wide, round once into `result`, tell who watches, keep what the vjp reads."""
    if len(inputs) < len(rule.inputs):
        inputs += (None,) * (len(rule.inputs) - len(inputs))
    names = rule.names(len(inputs))
    given = common_format(rule, names, inputs)
    arrays, parents = taken_apart(rule, names, inputs, given)
    result, static, address = result or given, rule.defaults | static, context.address(rule.name)
    if rule.takes_key and static.get("products") is not FLOAT32_PRODUCTS:     # those draw nothing, and a key takes 4 us
        static["key"] = context.key(address, "rule")
    kernel, seen = kernel_for(rule, given.compute, static, arrays), watched()
    if kernel is None:
        out = by_rule(rule, names, arrays, static, given.compute)
    else:                                        # which may round on the way to memory, where nobody wants the exact values
        half = result is FLOAT16 and context.forward == "nearest_even" and not seen
        out = kernel.forward(*arrays, **static, out=np.float16 if half else given.compute)
    exact, extras = out if isinstance(out, tuple) else (out, NOTHING)
    data = context.round(exact, result, "forward", address)
    if seen:
        tell("forward", address, exact, data, result, rule, inputs, static)
    if not context.record or parents.count(None) == len(parents):
        return Tensor(data, result)
    kept = remembered(rule, arrays, parents, static, extras, data)
    node = Node(rule, kernel, tuple(parents), kept, context.cotangent_of(result), data.shape, given.compute, address, context)
    return Tensor(data, result, node)


def remembered(rule, arrays, parents, static, extras, y) -> dict:
    """What the vjp names, and nothing else, each in the format that it has."""
    kept = {name: arrays[i] for name, i in rule.reads_inputs}
    for name, i in rule.reads_shapes:
        kept[name] = None if arrays[i] is None else arrays[i].shape
    for name in rule.reads_static:
        kept[name] = static[name]
    for name in rule.reads_more:
        kept[name] = extras[name] if name in extras else y if name == "y" else about_all(name, arrays, parents)
    return kept


def about_all(name, arrays, parents):
    """The shapes of all inputs, or for each whether anybody wants its cotangent: `needs`."""
    return [np.shape(a) for a in arrays] if name == "shapes" else tuple(p is not None for p in parents)


def topological(root) -> list:
    """Nodes and leaves behind a node, each after everything that uses it; no recursion, one fixed order."""
    order, seen, stack = [], set(), [root]
    while stack:
        at = stack.pop()
        if at is None:                       # everything behind the next one is in the list
            order.append(stack.pop())
        elif at not in seen:
            seen.add(at)
            if isinstance(at, Node):
                stack += at, None
                stack += [p for p in at.parents if p is not None and p not in seen]
            else:                            # behind a leaf there is nothing
                order.append(at)
    order.reverse()
    return order


def backward(loss: Tensor) -> dict:
    """Gradients of the leaves by name, each an array in the leaf's format. The graph is walked once and freed as it is walked.

    Cotangents that meet are summed in the compute format (float32) in one fixed order and rounded once, into the format of
    their tensor. Raises MiniLLMError for a loss of more than one value, a second walk, and two leaves of one name.
    """
    if loss.node is None or loss.node.kept is None:
        raise MiniLLMError("backward: this graph was walked already, or never recorded (no_record, or no tensor with a name)")
    if loss.size != 1:
        raise MiniLLMError(f"backward needs a loss of one value, not of shape {loss.shape}: take its mean or sum")
    xp, order, seen = array_module(loss.data), topological(loss.node), watched()
    arriving, gradients, leaves = {loss.node: xp.ones(loss.shape, loss.node.compute)}, {}, {}
    uses = Counter([p for at in order if isinstance(at, Node) for p in at.parents])
    to_come = dict(uses)
    with np.errstate(all="ignore"):                          # infinities of both signs may meet
        for at in order:
            exact = arriving.pop(at)
            if isinstance(at, Tensor):
                if leaves.setdefault(at.name, at) is not at:
                    raise MiniLLMError(f"backward: two leaves are named {at.name!r}: give each its own name")
                gradients[at.name] = received(exact, at.format, at, loss.node.context, seen)
                continue
            g = received(exact, at.cotangent, at, at.context, seen)
            for parent, share in zip(at.parents, cotangents(xp, at, g, uses), strict=True):
                if parent is not None:
                    here = arriving.get(parent)
                    arriving[parent] = share if here is None else added(here, share, share_type(parent, at.compute, to_come))
                    to_come[parent] -= 1
            at.kept, at.parents = None, ()
    return gradients


def added(here, share, out):
    """Two shares of one cotangent summed in the compute format; a kernel may round the last sum on its way to memory."""
    kernel = kernel_for(RULES["add"], here.dtype.type, {}, (here, share))
    return kernel.forward(here, share, out=out) if kernel else as_array(here + share)


def received(exact, format, at, context, seen):
    """What has arrived at a node or leaf, rounded once into a format; a share that a kernel rounded to it is left alone."""
    if exact.dtype == format.storage and not format.simulated and not seen:
        return exact
    address = at.address if isinstance(at, Node) else Address(at.name, "gradient", 0)
    rounded = context.round(exact, format, "backward", address)
    if seen:
        tell("backward", address, exact, rounded, format)
    return rounded


def share_type(parent, compute, shares) -> type:
    """In what a kernel may write a parent's cotangent: rounded to float16 only where that is all there will be done to it.

    So not where it is one of several shares, nor where the exact values are looked at. Leaves round their own gradient.
    """
    if not isinstance(parent, Node) or parent.cotangent is not FLOAT16:
        return compute
    once = shares[parent] == 1 and parent.context.backward == "nearest_even" and not watched()
    return np.float16 if once else compute


def cotangents(xp, node, g, uses):
    """Pass a cotangent through a node's rule: one for each parent, of the parent's shape; wide, but where a kernel may round it."""
    if node.rule.backward is None:
        raise MiniLLMError(f"{node.rule.name} has no vjp: detach() its result if no gradient is wanted")
    if node.kept is None:
        raise MiniLLMError(f"backward: a part of this graph, up to {node.address}, was walked already: add the losses, walk once")
    if node.kernel:
        out = tuple([share_type(p, node.compute, uses) for p in node.parents])
        shares = node.kernel.vjp(g, **node.kept, out=out)
    else:
        out = (node.compute,) * len(node.parents)
        kept = {n: v if n in node.rule.plain else widened(v, node.compute) for n, v in node.kept.items()}
        shares = [as_array(share) for share in node.rule.backward(xp, widened(g, node.compute), **kept)]
    for parent, share, kind in zip(node.parents, shares, out, strict=True):
        if parent is not None and (share is None or share.shape != parent.shape or share.dtype.type is not kind):
            found = "nothing" if share is None else f"{share.dtype} {share.shape}"
            raise MiniLLMError(f"the vjp of {node.rule.name} gives {found} for a value of shape {parent.shape}: mend the rule")
    return shares
