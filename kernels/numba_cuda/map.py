"""Numba CUDA kernels: one grid-stride loop, compiled per fusion.

A thread takes a chunk, the elements of one Philox call: it loads as many with 16-byte accesses, draws meanwhile, runs
the element formula over them in registers, and stores them the same way. The two ends of an array, and arrays that
aren't contiguous or aligned, go element by element through the same formula. What is given is read at a place that
moves on with the chunks, since divisions would cost more than the rest.
"""

import functools

import numpy as np
from numba import config, cuda

from gpudrop.formulas import compiled, philox
from gpudrop.kernels import WARP, accesses, device_math

SIMULATED = bool(config.ENABLE_CUDASIM)
if SIMULATED:
    from gpudrop.kernels.numba_cuda import simulator as processor
else:
    from gpudrop.kernels.numba_cuda import intrinsics as processor  # type: ignore[no-redef]

device, aligned, exchanged = processor.device, processor.aligned, processor.exchanged


def device_function(formula, fusion):
    """A formula as a function that kernels of a fusion call."""
    functions, own = processor.MATH_FUNCTIONS, dict(processor.OWN_FORMULAS)
    real = getattr(np, fusion.real)
    if fusion.approximate:
        functions = functions | processor.FAST_FUNCTIONS
        for replaced, by in device_math.FORMULAS.items():
            own[replaced] = compiled(by, real, functions, device)
    return compiled(formula, real, functions, device, own)


NEXT = (np.int64(1), np.int64(0), np.int64(0), np.int64(0))  # the place of element 1


@device
def find(i, period, repeat, run):
    """Where element i finds what is given for it, as `fusion.Given` tells: (within, at, turn, base)."""
    place = i // run
    lap = place // period
    return i - place * run, place - lap * period, lap % repeat, lap // repeat * period


@device
def move_on(place, by, period, repeat, run):
    """The place of a later element: `by` is the place of the element as far from the first one."""
    within, at, turn, base = place[0] + by[0], place[1] + by[1], place[2] + by[2], place[3] + by[3]
    if within >= run:
        within -= run
        at += 1
    if at >= period:
        at -= period
        turn += 1
    if turn >= repeat:
        turn -= repeat
        base += period
    return within, at, turn, base


@device
def truth(given, i):
    return given[i] != np.uint8(0)


@functools.cache
def masker(chunk):
    """A bit for each element of a chunk that starts at a place: whether it is kept. As a function.

    In most masks no two boundaries, of runs or, where each element has its own, of periods, meet in a chunk: then all
    is found in two steps.
    """

    @device
    def bit(mask, i, j):
        return np.uint32(np.uint32(truth(mask, i)) << np.uint32(j))

    @device
    def chunk_of_mask(mask, place, period, repeat, run):
        keeps, before = np.uint32(0), place[1] + place[3]
        if (period if run == 1 else run) < chunk:
            for j in range(chunk):
                keeps |= bit(mask, place[1] + place[3], j)
                place = move_on(place, NEXT, period, repeat, run)
        elif run == 1:
            ahead = period - place[1]
            place = move_on(place, (np.int64(0), ahead, np.int64(0), np.int64(0)), period, repeat, run)
            after = place[1] + place[3] - ahead
            for j in range(chunk):
                keeps |= bit(mask, (before if j < ahead else after) + j, j)
        else:
            ahead = run - place[0]
            if truth(mask, before):
                keeps = np.uint32(0xFFFFFFFF)
            if ahead < chunk:
                place = move_on(place, (ahead, np.int64(0), np.int64(0), np.int64(0)), period, repeat, run)
                later = np.uint32(np.uint32(0xFFFFFFFF) << np.uint32(ahead))
                keeps = np.uint32(keeps & ~later)
                if truth(mask, place[1] + place[3]):
                    keeps = np.uint32(keeps | later)
        return keeps

    return chunk_of_mask


@device
def swap(lane, distance, low, high):
    """Half of two words for half of the other thread's: the one has both low ones then, the other both high ones."""
    odd = lane & distance != 0
    received = exchanged(low if odd else high, distance)
    return (received, high) if odd else (low, received)


@device
def exchange(words, lane, parts):
    """The words for a thread's own elements, which are parts of other threads' chunks: see `kernels.accesses`."""
    w0, w1, w2, w3 = words
    if parts > 1:
        w0, w2 = swap(lane, parts >> 1, w0, w2)
        w1, w3 = swap(lane, parts >> 1, w1, w3)
    if parts == 4:
        w0, w1 = swap(lane, 1, w0, w1)
        w2, w3 = swap(lane, 1, w2, w3)
    return w0, w1, w2, w3


def drawer(fusion):
    """What is drawn for an element, out of the chunk's words and its lane."""
    bits, real, drawn = np.uint32(fusion.bits), getattr(np, fusion.real), fusion.acting.drawn
    kept, field, normal = (device_function(f, fusion) for f in (philox.keep, philox.field, philox.normal))

    @device
    def everything(words, lane, limit):
        return True

    @device
    def keep(words, lane, limit):
        return kept(words, lane, bits, limit)

    @device
    def number(words, lane, limit):
        return real(field(words, lane, bits))

    @device
    def deviate(words, lane, limit):
        return normal(words, lane)

    return {"keep": keep, "field": number, "normal": deviate}[drawn] if fusion.bits else everything


def reader(fusion):
    """What is given for an element."""

    @device
    def number(given, i):
        return given[i]

    return truth if fusion.keeps else number


@device
def itself(x):
    return x


def body(fusion, contiguous, native, as_array=itself, as_real=itself):
    """The kernel of a fusion, as a Python function.

    contiguous: whether a, b and out are flat and contiguous; otherwise they are indexed by logical index through
    `.flat`. native: whether the GPU converts to bfloat16 by itself, as those of capability 8 and later do. as_array,
    as_real: what makes arrays, and scale and shift, of the arguments for them.
    """
    chunk, real, storage = fusion.chunk, getattr(np, fusion.real), getattr(np, fusion.storage)
    drawn, stored, is_given, counted = fusion.bits > 0, fusion.stored, fusion.given, fusion.counted
    windowed, shares = fusion.window, np.uint64(fusion.shares)
    two_inputs, has_input = fusion.reads == 2, fusion.reads > 0
    width, parts, exchanges = accesses(fusion)
    exchanges, step = exchanges and contiguous, chunk // parts
    load, store = processor.vector_access(width)
    formula, draw_words = device_function(fusion.element, fusion), device_function(philox.draw, fusion)
    draw, read = drawer(fusion), reader(fusion)
    widen, narrow = processor.conversions(native)[fusion.dtype]
    is_mask, chunk_of_mask = fusion.given_mask, masker(chunk)

    def run_chunks(
        a, b, given, kept, stream, out,
        chunks, row, turns, period, repeat, run, pitch, start, seed, call, scale, shift, limit,
    ):  # fmt: skip
        a, b, given, kept, stream, out = (
            as_array(a), as_array(b), as_array(given), as_array(kept), as_array(stream), as_array(out)
        )  # fmt: skip
        pitch, start, seed, call = np.uint64(pitch), np.uint64(start), np.uint64(seed), np.uint64(call)
        scale, shift, limit = as_real(scale), as_real(shift), np.uint32(limit)
        a_lanes = cuda.local.array(chunk, storage)
        b_lanes = cuda.local.array(chunk, storage)
        out_lanes = cuda.local.array(chunk, storage)
        if stored:
            seed, call = stream[0], stream[1]
        if counted:
            scale = real(real(row) / real(max(kept[0], np.uint64(1))))  # nothing is multiplied if none are kept
        threads, i = np.int64(cuda.gridsize(1)), np.int64(cuda.grid(1))
        lane = i % WARP if exchanges else np.int64(0)
        # From i to the chunk that this thread draws for.
        to_own = lane % parts * (WARP // parts) + lane // parts - lane if exchanges else np.int64(0)
        line, further_lines, origin, begin = np.int64(0), np.int64(0), start, np.int64(0)
        turn, further = i, threads
        if windowed:
            line, further_lines = i // turns, threads // turns
            turn, further = i - line * turns, threads - further_lines * turns
        if is_given:
            place, further_place = find(i * chunk, period, repeat, run), find(threads * chunk, period, repeat, run)
        else:
            place, further_place = NEXT, NEXT
        skip = np.int64(origin % np.uint64(chunk))
        number = np.uint64(origin // np.uint64(chunk))
        straight = contiguous
        if contiguous and not windowed:
            straight = aligned(a, -skip, width) and aligned(b, -skip, width) and aligned(out, -skip, width)
        while i < chunks:
            if windowed:
                origin = start + np.uint64(line) * pitch
                begin = line * row
                skip = np.int64(origin % np.uint64(chunk))
                number = np.uint64(origin // np.uint64(chunk))
                if contiguous:
                    at = begin - skip
                    straight = aligned(a, at, width) and aligned(b, at, width) and aligned(out, at, width)
            own = turn + to_own
            inner = own * chunk - skip
            whole = straight and inner >= 0 and inner + chunk <= row
            m, apart, together = begin + inner, np.int64(step), False
            if exchanges:
                tile = (turn - lane) * chunk - skip
                together = straight and tile >= 0 and tile + WARP * chunk <= row
                if together:
                    m, apart = begin + tile + lane * step, np.int64(WARP * step)
            if whole:
                for s in range(parts):
                    if has_input:
                        load(a, m + s * apart, a_lanes, s * step)
                    if two_inputs:
                        load(b, m + s * apart, b_lanes, s * step)
            if drawn:
                mine = np.uint64(number + np.uint64(own))
                words = draw_words(seed, call, np.uint64(mine // shares))
                first_lane = np.uint32(np.uint32(mine % shares) * np.uint32(chunk))
            else:
                first_lane = np.uint32(0)
                words = (np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0))
            here = place
            if whole:
                if together:
                    words = exchange(words, lane, parts)
                keeps = chunk_of_mask(given, place, period, repeat, run) if is_mask else np.uint32(0)
                for j in range(chunk):
                    if is_mask:
                        r = (keeps >> np.uint32(j)) & np.uint32(1) != 0
                    elif is_given:
                        r = read(given, here[1] + here[3])
                        here = move_on(here, NEXT, period, repeat, run)
                    else:
                        r = draw(words, np.uint32(first_lane + np.uint32(j)), limit)
                    x = widen(a_lanes[j])
                    out_lanes[j] = narrow(formula(r, scale, shift, x, widen(b_lanes[j]) if two_inputs else x))
                for s in range(parts):
                    store(out_lanes, s * step, out, m + s * apart)
            else:
                for j in range(chunk):
                    if inner + j >= 0 and inner + j < row:
                        if is_given:
                            r = read(given, here[1] + here[3])
                            here = move_on(here, NEXT, period, repeat, run)
                        else:
                            r = draw(words, np.uint32(first_lane + np.uint32(j)), limit)
                        e = begin + inner + j
                        if contiguous:
                            out[e] = narrow(formula(r, scale, shift, widen(a[e]), widen(b[e])))
                        else:
                            out.flat[e] = narrow(formula(r, scale, shift, widen(a.flat[e]), widen(b.flat[e])))
            if is_given:
                place = move_on(place, further_place, period, repeat, run)
            i += threads
            turn += further
            if windowed:
                line += further_lines
                if turn >= turns:
                    turn -= turns
                    line += 1

    run_chunks.__name__ = run_chunks.__qualname__ = fusion.name
    return run_chunks
