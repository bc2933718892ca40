"""The C header of an artifact: C89, also C++; all that a caller must know as constants."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.runtime.arena import ALIGNMENT
from qcompiler.runtime.artifact import OUT_OF_RANGE, Interface, Platform, Tensor
from qcompiler.runtime.workers import SIZE as POOL_SIZE

_TOP = """\
/* {prefix}: a neural network compiled by {tool} for {target} ({triple}).
 *
 * The program computes in integers, keeps no state, allocates nothing and calls nothing. It is re-entrant: threads may run it
 * at the same time, each with an arena of its own. Link {library}, or {object}.{lengths}
 *
 *     static {input_type} input[{first_guard}_INPUT_0_SIZE];
 *     static {output_type} output[{first_guard}_OUTPUT_0_SIZE];
 *     const void *inputs[] = {{input}};
 *     void *outputs[] = {{output}};
 *     {first}_run(inputs, outputs, arena);
 *
 * where arena is {guard}_ARENA_SIZE bytes at an address that is a multiple of {guard}_ARENA_ALIGNMENT (aligned_alloc, or
 * a static array); it need not be cleared or kept between calls. An integer q stands for SCALE * (q - ZERO_POINT).
 * Required of the CPU: {features}.
 */
#ifndef {guard}_H
#define {guard}_H

#ifdef __cplusplus
extern "C" {{
#endif

#define {guard}_ARENA_SIZE {arena}
#define {guard}_ARENA_ALIGNMENT {alignment}
#define {guard}_WEIGHTS_SIZE {weights} /* bytes of constants inside the program */
#define {guard}_INPUT_COUNT {inputs}
#define {guard}_OUTPUT_COUNT {outputs}
"""

_BOTTOM = """
/* Quantized arrays in and out, dense, in the order and of the integer types given above. Returns 0{status}
{runs}

/* The same on real numbers: quantizes the inputs before and dequantizes the outputs after. Arrays are of the float types given above. */
{runs_f32}
{parallel}
#ifdef __cplusplus
}}
#endif

#endif /* {guard}_H */
"""

_LENGTHS = """
 * It was compiled for {count} shapes of its inputs: call the entry of the shape that you have, {entries}. All share
 * constants, the size of the arena and the pool; sizes and scales of each shape are below."""

_ENTRY = "int {prefix}(const void *const *inputs, void *const *outputs, void *arena);"
_PARALLEL_ENTRY = "int {prefix}(const void *const *inputs, void *const *outputs, void *arena, {family}_parallel_for parallel_for, void *pool);"

_STATUS = """, or {guard}_OUT_OF_RANGE + 256 * i where
 * inputs[i] is the first that holds an integer outside of its interval LOW to HIGH: then nothing is computed, and outputs stay as they are. */
#define {guard}_OUT_OF_RANGE {out_of_range}"""

_C_TYPES = {"int8": "signed char", "uint8": "unsigned char", "bool": "unsigned char", "int16": "short", "float32": "float"}
"""Of the types of numpy; others are called as in <stdint.h>."""

_PARALLEL = """
/* The same on several threads, with the same results whatever their number. `parallel_for` is yours: it calls task(context, i) for every
 * i < count, in any order and on any threads, and returns when all of them have; `pool` is handed through to it. It is called only by
 * these functions, and its threads need a few KiB of stack. */
typedef void (*{prefix}_task)(void *context, int index);
typedef void (*{prefix}_parallel_for)({prefix}_task task, void *context, int count, void *pool);
{runs_parallel}

/* A pool, if you have none: {guard}_POOL_SIZE zeroed bytes, aligned to {guard}_ARENA_ALIGNMENT. {prefix}_pool_for is a parallel_for, one call at a
 * time; it computes what nobody else does. Start threads on {prefix}_pool_worker: they take part until the state is STOP (then it returns 0), or
 * until, in the state IDLE, they found nothing to do in `spins` rounds of some 50 microseconds (then it returns 1: let the thread sleep, and call
 * again). Where threads are more than cores, let them give way: the 8 bytes at {guard}_POOL_YIELD may hold a function such as sched_yield. */
#define {guard}_POOL_SIZE {pool_size}
#define {guard}_POOL_YIELD 136
#define {guard}_POOL_IDLE 0
#define {guard}_POOL_BUSY 1 /* workers do not return: set it while programs run */
#define {guard}_POOL_STOP 2
void {prefix}_pool_for({prefix}_task task, void *context, int count, void *pool);
int {prefix}_pool_worker(void *pool, int spins);
void {prefix}_pool_set(void *pool, int state);
"""


def header(interface: Interface, target: Platform, tool: str, files: tuple[str, str]) -> str:
    """The header's text; `files` are the names of the object and of the library."""
    names = {"prefix": interface.prefix, "guard": interface.prefix.upper()}
    sizes = {"arena": interface.arena_size, "weights": interface.weights_size, "alignment": ALIGNMENT}
    counts = {"inputs": len(interface.inputs), "outputs": len(interface.outputs)}
    types = {"input_type": _c_type(interface.inputs), "output_type": _c_type(interface.outputs)}
    about = {"tool": tool, "target": target.name, "triple": target.triple, "features": ", ".join(target.features) or "nothing beyond the triple"}
    first = {"first": interface.forms[0].prefix, "first_guard": interface.forms[0].prefix.upper(), "lengths": _lengths(interface)}
    top = _TOP.format(**names, **first, **sizes, **counts, **types, **about, object=files[0], library=files[1])
    runs_parallel = _entries(interface, _PARALLEL_ENTRY, "_run_parallel", "_run_f32_parallel")
    parallel = _PARALLEL.format(**names, runs_parallel=runs_parallel, pool_size=POOL_SIZE) if interface.parallel else ""
    runs = {"runs": _entries(interface, _ENTRY, "_run"), "runs_f32": _entries(interface, _ENTRY, "_run_f32")}
    return top + "".join(map(_tensors, interface.forms)) + _BOTTOM.format(**names, **runs, parallel=parallel, status=_status(interface, names))


def _lengths(interface: Interface) -> str:
    """What is said of several forms; nothing of one."""
    entries = ", ".join(f.entry(integer=True) for f in interface.lengths)
    return _LENGTHS.format(count=len(interface.lengths), entries=entries) if interface.lengths else ""


def _entries(interface: Interface, declaration: str, *suffixes: str) -> str:
    """Declarations of the functions with these suffixes, of every form."""
    return "\n".join(declaration.format(prefix=f.prefix + s, family=interface.prefix) for f in interface.forms for s in suffixes)


def _tensors(form: Interface) -> str:
    """The blocks of all inputs and outputs."""
    blocks = [_tensor(form, "INPUT", i, t) for i, t in enumerate(form.inputs)]
    return "".join(blocks + [_tensor(form, "OUTPUT", i, t) for i, t in enumerate(form.outputs)])


def _status(interface: Interface, names: dict[str, str]) -> str:
    """The rest of the sentence on what entries return, and of its comment."""
    bounded = any(t.bounded for t in interface.inputs)
    return _STATUS.format(**names, out_of_range=OUT_OF_RANGE) if bounded else ". */"


def _c_type(tensors: Sequence[Tensor]) -> str:
    """Type of the elements of the first of `tensors`."""
    return c_type(tensors[0].storage) if tensors else "signed char"


def c_type(storage: str) -> str:
    """What C calls a type of numpy's."""
    return _C_TYPES.get(storage, f"{storage}_t")


def _tensor(interface: Interface, kind: str, index: int, tensor: Tensor) -> str:
    shape = " x ".join(map(str, tensor.shape)) or "a scalar"
    types = f"{c_type(tensor.storage)} const *" if kind == "INPUT" and tensor.scale is None else tensor.storage
    types = types if tensor.dtype == tensor.storage else f"{tensor.storage} (for {interface.prefix}_run_f32: {tensor.dtype})"
    title = f"\n/* {kind.lower()}s[{index}] '{_plain(tensor.name)}': {types}, {shape} */\n"
    return title + "".join(f"#define {interface.prefix.upper()}_{kind}_{index}_{key} {value}\n" for key, value in _facts(tensor).items())


def _facts(tensor: Tensor) -> dict[str, str]:
    facts = {"TYPE": c_type(tensor.storage), "SIZE": f"{tensor.size} /* elements */", "RANK": str(len(tensor.shape))}
    if tensor.shape:
        facts["SHAPE"] = "{" + ", ".join(map(str, tensor.shape)) + "}"
    if tensor.bounded:
        facts |= dict(zip(("LOW", "HIGH"), (f"({bound})" for bound in tensor.interval)))
    if isinstance(tensor.zero_point, tuple):
        facts |= {
            "AXIS": f"{tensor.axis} /* each index of it has its own: */",
            "SCALES": _list(tensor.scales),
            "ZERO_POINTS": _list(tensor.zero_point),
        }
    elif tensor.scale is not None:
        facts |= {"SCALE": repr(tensor.scales[0]), "ZERO_POINT": f"({tensor.zero_point})"}
    return facts


def _list(numbers: Sequence[float]) -> str:
    return "{" + ", ".join(repr(float(n)) for n in numbers) + "}"


def _plain(name: str) -> str:
    """A model's name for a value, harmless in a comment: printable ASCII, no comment marks, no line continuation or trigraph."""
    return "".join(c if c.isascii() and c.isprintable() and c not in "*\\?" else "_" for c in name)
