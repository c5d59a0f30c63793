"""Numba CUDA kernels: one grid-stride loop, compiled for each kernel.

A thread processes one chunk at a time: the elements of one Philox call. It loads the chunk with 16-byte accesses, and
draws while the loads run. It applies the element formula in registers, and stores the results with 16-byte accesses.
The two ends of an array are processed one element at a time by the same formula. So are arrays that are not contiguous
or not aligned. If the kernel reads a mask, a thread's location in it advances with the chunks.

`../cupy_elementwise/map.cuh` is the same code for CuPy, with the same names.
"""

import numpy as np
from numba import config, cuda

from gpudrop.formulas import compiled
from gpudrop.kernels import device_math
from gpudrop.kernels.chunks import WARP, chunks, formulas_of

SIMULATED = bool(config.ENABLE_CUDASIM)
if SIMULATED:
    from gpudrop.kernels.numba_cuda import simulator as processor
else:
    from gpudrop.kernels.numba_cuda import intrinsics as processor  # type: ignore[no-redef]

device, NOWHERE = processor.device, (np.int64(0),) * 4


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


def operands_of(kernel, contiguous, native, as_array, formulas):
    """The functions of a kernel that name each operand, generated as text because Numba does not unroll tuples.

    load, store             copy a chunk of each input to the lanes, and the results to each output
    read_bits, write_bits   the same for bits, which are in one integer; each does nothing without such an operand
    compute                 compute the results of lane j, and return its bit
    compute_one             compute element e of each output
    aligned                 whether element i of every operand is aligned for a wide access
    """
    size, _, width, parts, _, _, group = chunks(kernel)
    load, store = processor.vector_access(width)
    widen, narrow = processor.conversions(native)[kernel.dtype]
    halved = int(kernel.storage == "uint16")  # see `half_of`
    names = {
        "load_part": load, "store_part": store, "widen": widen, "narrow": narrow, "element": formulas["element"],
        "aligned_at": processor.aligned, "as_array": as_array, "size": size, "width": width,
        "parts": parts, "step": size // parts, "group": group, "mask": np.uint32((1 << group) - 1),
        "bits_of": formulas["bits_of"], "bit_of": formulas["bit_of"], "word_of": formulas["word_of"],
        "lane_of": half_of if halved else lane_of,
        "first_lane": device(lambda k, s: (k * size + s * (size // parts)) >> halved),
        "uint32": np.uint32, "set_bits": processor.set_bits,
    }  # fmt: skip
    inputs, outputs = range(kernel.num_inputs), range(kernel.num_outputs)
    results, at = ", ".join(f"value{k}" for k in range(len(kernel.outputs))), "[e]" if contiguous else ".flat[e]"
    packed, marked = f"as_array(inputs[{len(inputs)}])", f"as_array(outputs[{len(outputs)}])"
    reads, writes = kernel.reads_bits, kernel.writes_bits
    given, mark = ["bit != uint32(0)"] * reads, f"uint32(value{len(outputs)} != 0)" if writes else "uint32(0)"
    arrays = [f"{of}[{k}]" for of, ks in (("inputs", inputs), ("outputs", outputs)) for k in ks]
    lanes = ", ".join(["r, scale, shift", *(f"widen(lane_of(lanes, {k} * size + j))" for k in inputs), *given])
    elements = ", ".join(["r, scale, shift", *(f"widen(as_array(inputs[{k}]){at})" for k in inputs), *given])
    alignments = [f"aligned_at(as_array({array}), i, width)" for array in arrays]
    alignments += ["i & (group - 1) == 0"] * reads + ["i & 31 == 0"] * writes
    made = {
        "load(inputs, m, apart, lanes)": [
            "for s in range(parts):",
            *(f"  load_part(as_array(inputs[{k}]), m + s * apart, lanes, first_lane({k}, s))" for k in inputs),
            "  pass",
        ],
        "store(results, outputs, m, apart)": [
            "for s in range(parts):",
            *(f"  store_part(results, {k} * size + s * step, as_array(outputs[{k}]), m + s * apart)" for k in outputs),
            "  pass",
        ],
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
            *(f"results[{k} * size + j] = narrow(value{k})" for k in outputs),
            f"return uint32({mark} << uint32(j))",
        ],
        "compute_one(r, scale, shift, inputs, outputs, e)": [
            *[f"bit = bit_of({packed}, e)"] * reads,
            f"{results} = element({elements})",
            *(f"as_array(outputs[{k}]){at} = narrow(value{k})" for k in outputs),
            *[f"if {mark} != uint32(0):", f"  set_bits({marked}, e >> 5, uint32(uint32(1) << uint32(e & 31)))"]
            * writes,
        ],
        "aligned(inputs, outputs, i)": [f"return {' and '.join(alignments)}"],
    }
    return {header[: header.index("(")]: device(_function(header, lines, names)) for header, lines in made.items()}


def _function(header, lines, names):
    """The function that a header and its lines define."""
    found = {}
    exec("".join([f"def {header}:", *(f"\n  {line}" for line in lines)]), names, found)  # noqa: S102  (text from this file)
    return found.popitem()[1]


def chunk_functions(kernel, formulas, of):
    """The functions compute_chunk and compute_ends.

    compute_chunk computes a chunk in registers; all of its elements are inside the arrays. It takes and returns the
    chunk's bits. compute_ends computes one element at a time. n contains their kernel arguments: mask, period, repeat,
    run, scale, shift, limit and row.
    """
    size, masked = chunks(kernel).size, kernel.masked
    bits_of_mask = masked and kernel.keeps
    drawn_of, index_of, next_element = formulas["drawn_of"], formulas["index_of"], formulas["next_element"]
    chunk_bits, read = formulas["chunk_bits"], truth if kernel.keeps else number
    compute, compute_one = of["compute"], of["compute_one"]

    @device
    def next_drawn(n, words, lane, at):
        """The random value of the next element of a chunk, and the location of the element after it."""
        mask, period, repeat, run, _, _, limit, _ = n
        if masked:
            return read(mask, index_of(at)), next_element(at, period, repeat, run)
        return drawn_of(words, lane, limit), at

    @device
    def compute_chunk(n, words, first_lane, at, lanes, bits, results):
        mask, period, repeat, run, scale, shift, _, _ = n
        marks = np.uint32(0)
        keeps = chunk_bits(mask, at, period, repeat, run) if bits_of_mask else np.uint32(0)
        for j in range(size):
            if bits_of_mask:
                r = (keeps >> np.uint32(j)) & np.uint32(1) != 0
            else:
                r, at = next_drawn(n, words, np.uint32(first_lane + np.uint32(j)), at)
            marks = np.uint32(marks | compute(r, scale, shift, lanes, bits, results, j))
        return marks

    @device
    def compute_ends(n, words, first_lane, at, inputs, outputs, begin, inner):
        _, _, _, _, scale, shift, _, row = n
        for j in range(size):
            if inner + j >= 0 and inner + j < row:
                r, at = next_drawn(n, words, np.uint32(first_lane + np.uint32(j)), at)
                compute_one(r, scale, shift, inputs, outputs, begin + inner + j)

    return compute_chunk, compute_ends


@device
def truth(mask, i):
    return mask[i] != np.uint8(0)


@device
def number(mask, i):
    return mask[i]


def body(kernel, contiguous, native, as_array=itself, as_real=itself):
    """The kernel as a Python function of its inputs, its outputs, the mask, its count, the stream and the scalars.

    contiguous: whether the operands are flat and contiguous; otherwise `.flat` maps logical indices to elements.
    native: whether the GPU has an instruction that converts to bfloat16, as from compute capability 8 on.
    as_array, as_real: functions that convert arguments to arrays, and to scale and shift.
    """
    size, shares, _, parts, exchanged, cooperating, _ = chunks(kernel)
    real, storage = getattr(np, kernel.real), getattr(np, kernel.storage)
    draws, stored, masked, counted = kernel.bits > 0, kernel.stored, kernel.masked, kernel.counted
    windowed, shares = kernel.window, np.uint64(shares)
    exchanged, cooperating, step = exchanged and contiguous, cooperating and contiguous, size // parts
    lanes_in, lanes_out = size * max(1, kernel.num_inputs), size * max(1, kernel.num_outputs)
    loaded, writes_bits = np.uint32 if kernel.storage == "uint16" else storage, kernel.writes_bits  # see `half_of`
    f = functions_of(kernel)
    draw, own_chunk, exchange, locate, advance = (
        f["draw"], f["own_chunk"], f["exchange"], f["locate"], f["advance"]
    )  # fmt: skip
    first_turn, next_turn = f["first_turn"], f["next_turn"]
    of = operands_of(kernel, contiguous, native, as_array, f)
    load, store, aligned = of["load"], of["store"], of["aligned"]
    read_bits, write_bits = of["read_bits"], of["write_bits"]
    compute_chunk, compute_ends = chunk_functions(kernel, f, of)

    @device
    def begins(straight, row):
        """The number of indices at which a whole chunk may begin. A negative index is larger, as an unsigned number."""
        return np.uint64(row - size + 1 if straight and row >= size else 0)

    @device
    def run_chunks(
        inputs, outputs, mask, kept, stream,
        count, row, turns, period, repeat, run, pitch, start, seed, call, scale, shift, limit,
    ):  # fmt: skip
        mask, kept, stream = as_array(mask), as_array(kept), as_array(stream)
        pitch, start, seed, call = np.uint64(pitch), np.uint64(start), np.uint64(seed), np.uint64(call)
        scale, shift, limit = as_real(scale), as_real(shift), np.uint32(limit)
        lanes, results = cuda.local.array(lanes_in, loaded), cuda.local.array(lanes_out, storage)
        if stored:
            seed, call = stream[0], stream[1]
        if counted:
            scale = real(real(row) / real(max(kept[0], np.uint64(1))))  # if no element is kept, the scale is not used
        n = mask, period, repeat, run, scale, shift, limit, row
        threads, i = np.int64(cuda.gridsize(1)), np.int64(cuda.grid(1))
        lane = i % WARP if cooperating else np.int64(0)
        to_own = own_chunk(lane) - lane if exchanged else np.int64(0)  # from i to the chunk that this thread draws
        here, further = (np.int64(0), i, np.int64(0), np.int64(0)), (np.int64(0), threads, np.int64(0), np.int64(0))
        if windowed:
            here, further = first_turn(i, turns), first_turn(threads, turns)
        in_mask, further_in_mask = NOWHERE, NOWHERE
        if masked:
            in_mask = locate(i * size, period, repeat, run)
            further_in_mask = locate(threads * size, period, repeat, run)
        origin, begin = start, np.int64(0)
        skip, number = np.int64(origin % np.uint64(size)), np.uint64(origin // np.uint64(size))
        straight = contiguous
        if contiguous and not windowed:
            straight = aligned(inputs, outputs, -skip)
        wholes = begins(straight, row)
        while i < count:
            if windowed:
                origin = start + np.uint64(here[0]) * pitch
                begin = here[0] * row
                skip, number = np.int64(origin % np.uint64(size)), np.uint64(origin // np.uint64(size))
                if contiguous:
                    straight = aligned(inputs, outputs, begin - skip)
                    wholes = begins(straight, row)
            turn = here[1] if windowed else i
            own = turn + to_own
            inner = own * size - skip
            whole = np.uint64(inner) < wholes
            m, apart, together = begin + inner, np.int64(step), False
            if cooperating:
                tile = (turn - lane) * size - skip
                together = straight and tile >= 0 and tile + WARP * size <= row
                if together and exchanged:
                    m, apart = begin + tile + lane * step, np.int64(WARP * step)
            if writes_bits:
                whole = together
            bits = np.uint32(0)
            if whole:
                load(inputs, m, apart, lanes)
                bits = read_bits(inputs, m, apart)
            words, first_lane = (np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)), np.uint32(0)
            if draws:
                mine = np.uint64(number + np.uint64(own))
                words = draw(seed, call, np.uint64(mine // shares))
                first_lane = np.uint32(np.uint32(mine % shares) * np.uint32(size))
            if whole:
                if together and exchanged:
                    words = exchange(words, np.uint32(lane))
                bits = compute_chunk(n, words, first_lane, in_mask, lanes, bits, results)
                store(results, outputs, m, apart)
                write_bits(bits, outputs, m, apart, lane)
            else:
                compute_ends(n, words, first_lane, in_mask, inputs, outputs, begin, inner)
            if masked:
                in_mask = advance(in_mask, further_in_mask, period, repeat, run)
            i += threads
            if windowed:
                here = next_turn(here, further, turns)

    return _kernel(kernel, run_chunks)


SCALARS = "count, row, turns, period, repeat, run, pitch, start, seed, call, scale, shift, limit"


def _kernel(kernel, run_chunks):
    """A function with the kernel's name that takes each operand separately and calls `run_chunks`."""
    inputs = "".join(f"a{k}, " for k in range(kernel.num_inputs + kernel.reads_bits))
    outputs = "".join(f"y{k}, " for k in range(len(kernel.outputs)))
    text = f"""
def make(run_chunks):
    def {kernel.name}({inputs}{outputs}mask, kept, stream, {SCALARS}):
        run_chunks(({inputs}), ({outputs}), mask, kept, stream, {SCALARS})

    return {kernel.name}
"""
    found = {}
    exec(text, globals(), found)  # noqa: S102  (as above; the simulator needs the globals)
    return found["make"](run_chunks)
