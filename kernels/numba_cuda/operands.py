"""The operands of Numba's CUDA kernels: loads, stores and conversions, and the function that takes the arguments.

`map` and `sums` have the loops. They do not use Numba's module `cuda`, because the simulator replaces it only in the
module of the function that is launched: this one.
"""

import numpy as np
from numba import config, cuda

from gpudrop.formulas import compiled
from gpudrop.kernels import device_math
from gpudrop.kernels.chunks import chunks, formulas_of
from gpudrop.kernels.spec import REAL, STORAGE, WIDTHS

SIMULATED = bool(config.ENABLE_CUDASIM)
if SIMULATED:
    from gpudrop.kernels.numba_cuda import simulator as processor
else:
    from gpudrop.kernels.numba_cuda import intrinsics as processor  # type: ignore[no-redef]

device = processor.device


@device
def this_thread():
    return np.int64(cuda.grid(1))


@device
def all_threads():
    return np.int64(cuda.gridsize(1))


def functions_of(kernel):
    """The formulas of a kernel as compiled functions, by name."""
    functions, own = processor.MATH_FUNCTIONS, dict(processor.OWN_FORMULAS)
    real = getattr(np, kernel.real)
    if kernel.approximate:
        functions, own = functions | processor.FAST_FUNCTIONS, own | processor.FAST_FORMULAS
        for replaced, by in device_math.FORMULAS.items():
            own[replaced] = compiled(by, real, functions, device, own)
    return {name: compiled(formula, real, functions, device, own) for name, formula in formulas_of(kernel).items()}


@device
def itself(x):
    return x


@device
def lane_of(lanes, i):
    return lanes[i]


@device
def half_of(lanes, i):
    """Element i of words that contain two elements each. While random words are drawn, a thread keeps whole words."""
    return np.uint16(lanes[i >> 1] >> np.uint32(16 * (i & 1)) & np.uint32(0xFFFF))


def array_of(count, dtype):
    """A function that returns an array, which is in registers if all indices are constants."""

    @device
    def allocate():
        return cuda.local.array(count, dtype)

    return allocate


class Operand:
    """An input or output of layout "full" or "row".

    Attributes
    ----------
    dtype : str
    width, count : int
        Bytes and elements per access. The part of a row whose dtype is wider than the kernel's has several accesses.
    halved : int
        1 if the words that an input is loaded to contain two elements each: see `half_of`.
    """

    def __init__(self, kernel, dtype):
        size, _, _, parts, *_ = chunks(kernel)
        self.kernel, self.dtype, self.size, self.step = kernel, dtype, size, size // parts
        self.width = min(16, self.step * WIDTHS[dtype])
        self.count, self.halved = self.width // WIDTHS[dtype], int(STORAGE[dtype] == "uint16")

    def input_functions(self, k, native):
        """The functions that the text of `operands_of` calls for input number k."""
        (load, _), (widen, _) = processor.vector_access(self.width), processor.conversions(native)[self.dtype]
        real, converts = getattr(np, self.kernel.real), REAL[self.dtype] != self.kernel.real
        return {
            f"load{k}": load,
            f"widen{k}": device(lambda stored: real(widen(stored))) if converts else widen,
            f"lane{k}": half_of if self.halved else lane_of,
            f"lanes{k}": array_of(self.size, np.uint32 if self.halved else getattr(np, STORAGE[self.dtype])),
        }

    def output_functions(self, k, native):
        """The same for output number k."""
        (_, store), (_, narrow) = processor.vector_access(self.width), processor.conversions(native)[self.dtype]
        real, converts = getattr(np, REAL[self.dtype]), REAL[self.dtype] != self.kernel.real
        return {
            f"store{k}": store,
            f"narrow{k}": device(lambda value: narrow(real(value))) if converts else narrow,
            f"results{k}": array_of(self.size, getattr(np, STORAGE[self.dtype])),
        }

    def loads(self, k, s, first):
        """The lines that load part s of input number k, whose first element has the index `first`."""
        return [
            f"load{k}(as_array(inputs[{k}]), {first} + {j}, lanes[{k}], {s * self.step + j >> self.halved})"
            for j in range(0, self.step, self.count)
        ]

    def set_lane(self, k, j, element):
        """The line that sets lane j of input number k. The lanes must be set in increasing order."""
        if not self.halved:
            return f"lanes[{k}][{j}] = {element}"
        lane, added = f"lanes[{k}][{j // 2}]", f"uint32({element})"
        return f"{lane} = {added if j % 2 == 0 else f'uint32({lane} | uint32({added} << uint32(16)))'}"


def operands_of(kernel, contiguous, native, as_array, formulas):
    """The functions of a kernel that name each operand, generated as text because Numba does not unroll tuples.

    new_lanes, new_results  arrays for a chunk of each full input and row, and of each result
    load, store             copy a chunk of each full input to the lanes, and the results to each full output
    load_rows               copy a chunk of each row to the lanes, from the column of its first element on. The columns
                            of two parts differ by `apart`. wide: whether each part is aligned
    read_bits, write_bits   copy bits, which are in one integer; each does nothing without such an operand
    compute                 compute the results of lane j, and return its bit
    compute_one             compute element e, which has lane j, of each output
    aligned                 whether element i of every full operand is aligned for a wide access
    aligned_rows            whether every part that begins in `column`, or a multiple of parts later, is aligned in rows
    clear_sums, write_sums  set the sums of a chunk to 0, and write the first `left` ones from element m on
    """
    size, _, _, parts, _, _, group = chunks(kernel)
    step, real = size // parts, getattr(np, kernel.real)
    read, written = ([Operand(kernel, dtype) for dtype in of] for of in kernel.dtypes)
    full, outputs, rows = range(kernel.num_inputs), range(len(written)), range(kernel.num_inputs, len(read))
    sums = range(len(written), len(written) + kernel.num_sums)
    names = {
        "element": formulas["element"], "aligned_at": processor.aligned, "as_array": as_array, "group": group,
        "mask": np.uint32((1 << group) - 1), "bits_of": formulas["bits_of"], "bit_of": formulas["bit_of"],
        "word_of": formulas["word_of"], "next_column": formulas["next_column"], "one": np.int64(1),
        "size": size, "uint32": np.uint32, "set_bits": processor.set_bits, "zero": real(0),
    }  # fmt: skip
    for k, operand in enumerate(read):
        names |= operand.input_functions(k, native)
    for k, operand in enumerate(written):
        names |= operand.output_functions(k, native)
    names |= {f"results{k}": array_of(size, real) for k in sums}
    results, at = ", ".join(f"value{k}" for k in range(len(kernel.outputs))), "[e]" if contiguous else ".flat[e]"
    packed, marked = f"as_array(inputs[{len(read)}])", f"as_array(outputs[{len(written)}])"
    reads, writes = kernel.reads_bits, kernel.writes_bits
    given, mark = ["bit != uint32(0)"] * reads, f"uint32(value{len(written)} != 0)" if writes else "uint32(0)"
    lanes = [f"widen{k}(lane{k}(lanes[{k}], j))" for k in (*full, *rows)]
    elements = [f"widen{k}(as_array(inputs[{k}]){at if k in full else '[column]'})" for k in (*full, *rows)]
    lanes, elements = (", ".join(["r, scale, shift", *of, *given]) for of in (lanes, elements))
    summed = [f"results[{k}][j] += value{k}" for k in sums]
    alignments = [f"aligned_at(as_array(inputs[{k}]), i, {read[k].width})" for k in full]
    alignments += [f"aligned_at(as_array(outputs[{k}]), i, {written[k].width})" for k in outputs]
    alignments += ["i & (group - 1) == 0"] * reads + ["i & 31 == 0"] * writes
    alignments_of_rows = [f"columns & {step - 1} == 0 and column & {step - 1} == 0"]
    alignments_of_rows += [f"aligned_at(as_array(inputs[{k}]), column, {read[k].width})" for k in rows]
    wide, narrow = ["if wide:"], ["else:"]
    for s in range(parts):
        next_part = ["  column = next_column(column, apart, columns)"] * (s + 1 < parts)
        wide += [f"  {line}" for k in rows for line in read[k].loads(k, s, "column")] + next_part
        narrow += ["  here = column"]
        for j in range(s * step, s * step + step):
            narrow += [f"  {read[k].set_lane(k, j, f'as_array(inputs[{k}])[here]')}" for k in rows]
            narrow += ["  here = next_column(here, one, columns)"]
        narrow += next_part
    made = {
        "new_lanes()": [f"return ({''.join(f'lanes{k}(), ' for k in (*full, *rows))})"],
        "new_results()": [f"return ({''.join(f'results{k}(), ' for k in (*outputs, *sums))})"],
        "load(inputs, m, apart, lanes)": [
            *(line for s in range(parts) for k in full for line in read[k].loads(k, s, f"m + {s} * apart")),
            "pass",
        ],
        "store(results, outputs, m, apart)": [
            *(
                f"store{k}(results[{k}], {s * step}, as_array(outputs[{k}]), m + {s} * apart)"
                for s in range(parts)
                for k in outputs
            ),
            "pass",
        ],
        "load_rows(inputs, column, apart, columns, wide, lanes)": wide + narrow if rows else ["pass"],
        "read_bits(inputs, m, apart)": [
            "bits = uint32(0)",
            *["for g in range(size // group):"] * reads,
            *[f"  bits = uint32(bits | (bits_of({packed}, m + g * apart) << uint32(g * group)))"] * reads,
            "return bits",
        ],
        "write_bits(bits, outputs, m, apart, lane)": [
            f"for g in range({int(writes)} * (size // group)):",
            "  word = word_of(uint32((bits >> uint32(g * group)) & mask), uint32(lane))",
            "  if lane % (32 // group) == 0:",
            f"    {marked}[(m + g * apart) >> 5] = word" if writes else "    pass",
        ],
        "compute(r, scale, shift, lanes, bits, results, j)": [
            "bit = uint32(bits & uint32(uint32(1) << uint32(j)))",
            f"{results} = element({lanes})",
            *(f"results[{k}][j] = narrow{k}(value{k})" for k in outputs),
            *summed,
            f"return uint32({mark} << uint32(j))",
        ],
        "compute_one(r, scale, shift, inputs, outputs, results, e, column, j)": [
            *[f"bit = bit_of({packed}, e)"] * reads,
            f"{results} = element({elements})",
            *(f"as_array(outputs[{k}]){at} = narrow{k}(value{k})" for k in outputs),
            *[f"if {mark} != uint32(0):", f"  set_bits({marked}, e >> 5, uint32(uint32(1) << uint32(e & 31)))"]
            * writes,
            *summed,
        ],
        "aligned(inputs, outputs, i)": [f"return {' and '.join(alignments)}"],
        "aligned_rows(inputs, column, columns)": [f"return {' and '.join(alignments_of_rows)}"],
        "clear_sums(results)": [f"results[{k}][{j}] = zero" for k in sums for j in range(size)] or ["pass"],
        "write_sums(results, outputs, m, left)": [
            line
            for j in range(size)
            for line in [f"if {j} < left:", *(f"  as_array(outputs[{k}])[m + {j}] = results[{k}][{j}]" for k in sums)]
        ]
        if sums
        else ["pass"],
    }
    return {header[: header.index("(")]: device(_function(header, lines, names)) for header, lines in made.items()}


def _function(header, lines, names):
    """The function that a header and its lines define."""
    found = {}
    exec("".join([f"def {header}:", *(f"\n  {line}" for line in lines)]), names, found)  # noqa: S102  (text from this file)
    return found.popitem()[1]


SCALARS = "count, row, turns, period, repeat, run, columns, rows, pitch, start, seed, call, scale, shift, limit"


def entry(kernel, run_chunks, as_array, as_real):
    """A function with the kernel's name that takes each operand separately and calls `run_chunks`.

    It passes the inputs, the outputs, a tuple n, and other scalars. n has the arguments that the functions of a chunk
    need: mask, period, repeat, run, scale, shift, limit and row.
    """
    real, stored, counted = getattr(np, kernel.real), kernel.stored, kernel.counted

    @device
    def stream_of(stream, seed, call):
        stream, seed, call = as_array(stream), np.uint64(seed), np.uint64(call)
        if stored:
            seed, call = stream[0], stream[1]
        return seed, call

    @device
    def scale_of(kept, row, scale):
        kept, scale = as_array(kept), as_real(scale)
        if counted:
            scale = real(real(row) / real(max(kept[0], np.uint64(1))))  # if no element is kept, the scale is not used
        return scale

    inputs = "".join(f"a{k}, " for k in range(kernel.num_inputs + kernel.num_rows + kernel.reads_bits))
    outputs = "".join(f"y{k}, " for k in range(len(kernel.outputs)))
    text = f"""
def make(run_chunks, as_array, as_real, stream_of, scale_of):
    def {kernel.name}({inputs}{outputs}mask, kept, stream, {SCALARS}):
        seed, call = stream_of(stream, seed, call)
        scale, shift, limit = scale_of(kept, row, scale), as_real(shift), np.uint32(limit)
        n = as_array(mask), period, repeat, run, scale, shift, limit, row
        pitch, start = np.uint64(pitch), np.uint64(start)
        run_chunks(({inputs}), ({outputs}), n, count, turns, columns, rows, pitch, start, seed, call)

    return {kernel.name}
"""
    found = {}
    exec(text, globals(), found)  # noqa: S102  (as above; the simulator needs the globals)
    return found["make"](run_chunks, as_array, as_real, stream_of, scale_of)
