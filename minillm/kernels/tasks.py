"""How rows and values are shared out among threads: into tasks, by the array's shape alone.

A task is computed by one thread from its first row to its last, and no sum crosses the border of two tasks but in their order, so
results are the same bits on any number of threads. A kernel is a plain function of one task, which `launch` hands to numba's pool.
The count of threads is numba's setting.
"""
from collections.abc import Callable

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from minillm.kernels.launch import TASK, in_pool
from minillm.kernels.scalars import JIT

VALUES = 4096                      # in a task at least: 1 to 5 us of work
TASKS = 64                         # at most: four for each of 16 threads, and sums over tasks stay short


def shares(n: int, least: int) -> tuple[int, int]:
    """How many of n items go into a task, at least `least`, and how many tasks that makes."""
    each = max(1, least, -(-n // TASKS))
    return each, -(-n // each)


# Tasks as machine code: `launch` has a task compiled twice, and a product's takes seconds. Behind an address it is compiled once,
# and one loop serves all kernels whose task is a function of two numbers, its own and an address of what it needs.

def code_of(task: Callable) -> int:
    """The address of a compiled function of two whole numbers, which is compiled where it was not."""
    task.compile((types.intp, types.intp))
    compiled = task.overloads[types.intp, types.intp]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)


@intrinsic
def call_task(typingctx, code, number, job):
    """Calls the function at this address."""
    def emit(context, builder, signature, args):
        code, *numbers = args
        kind = ir.FunctionType(ir.VoidType(), [number.type for number in numbers])
        builder.call(builder.inttoptr(code, kind.as_pointer()), numbers)
        return context.get_dummy_value()
    return types.void(types.intp, types.intp, types.intp), emit


@njit(**TASK)
def _coded(number, code, job):
    call_task(code, number, job)


@njit(**JIT)
def run_code(tasks, code, job, shared):
    """Tasks 0 ... tasks - 1 of this code, by all threads where they are to share them."""
    if shared:
        in_pool(_coded, tasks, (code, job))
    else:
        for number in range(tasks):
            _coded(number, code, job)
