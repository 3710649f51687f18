"""The course of the demo, from the recording to the last sentence."""

import argparse
import importlib
import textwrap
from typing import Any

from ._demo_data import Batch, batch_of, built_in, InputError, read, Recording, sizes
from ._demo_network import Network, network
from ._demo_report import (
    comparison_table,
    entry,
    heading,
    progress,
    sweeps_table,
    UsageError,
)
from ._demo_results import Comparison


# Numbers in all states; the arrays that a gradient needs are several times as many.
_MOST_STATES = 10**9
# Beyond this a sweep, whose cost grows with the cube, takes long on any machine.
_LARGE_STATE = 32


def run(options: argparse.Namespace, backend: str) -> int:
    """Prints the demo, draws its picture, and returns the exit code."""
    picture = None
    if options.picture is not None:
        # Whether matplotlib is there should be known before all is computed.
        picture = importlib.import_module("._demo_picture", __package__)
    recording = _recording(options.input)
    width = 2 * recording.values.shape[2]
    net = network(
        options.cell, options.hidden, width, recording.values.shape[2], options.seed
    )
    count, length = sizes(recording, options.batch, options.length)
    if count * length * net.state_size > _MOST_STATES:
        raise UsageError(
            f"--batch {count} --length {length} --hidden {options.hidden} makes states "
            f"of {count * length * net.state_size:.1e} numbers, and the demo takes "
            f"{_MOST_STATES:.0e} at most; choose smaller ones"
        )
    batch = batch_of(recording, count, length)
    # By name, because nothing in the light half may import a framework's half.
    framework: Any = importlib.import_module(f".{backend}._demo", __package__)
    with framework.computation(
        net,
        batch.inputs,
        dtype=options.dtype,
        tolerance=options.tolerance,
        window=options.window,
        repeats=options.repeats,
    ) as computation:
        return _tell(options, net, batch, computation, picture)


def _recording(path: str | None) -> Recording:
    try:
        return built_in() if path is None else read(path)
    except InputError as error:
        name = "" if path is None else "argument --input: "
        raise UsageError(f"{name}{error}") from error


def _tell(
    options: argparse.Namespace,
    net: Network,
    batch: Batch,
    computation: Any,
    picture: Any,
) -> int:
    length = batch.inputs.shape[1]
    _print_problem(options, net, batch, computation)
    comparisons: dict[str, Comparison] = {}
    # Compilations and first runs, and the timed ones.
    total = computation.preparations + options.repeats
    for title, compare in (
        ("Forward", computation.forward),
        ("Value and gradient", computation.gradient),
    ):
        with progress(title, total, options.quiet) as advance:
            comparison = compare(advance)
        print(heading(title))
        of_gradient = bool(comparisons)
        _print(comparison_table(comparison, length, options.window, of_gradient))
        wrong = _complaint(comparison, computation)
        if wrong:
            _print(
                [
                    "",
                    *textwrap.wrap(
                        wrong, 84, initial_indent="  ", subsequent_indent="  "
                    ),
                ]
            )
            return 1
        comparisons[title] = comparison

    count = comparisons["Forward"].sweeps[1]
    if options.window is not None:
        # Windows take their sweeps one after the other: this is about all at once.
        count = computation.most_sweeps
    with progress("Sweeps", count + 1, options.quiet) as advance:
        sweeps = computation.sweeps(count, advance)
    print(heading("Converged prefix per sweep"))
    _print(
        [
            "  certified: what the solver itself can vouch for, one sweep later",
            "  correct: within tolerance of the sequential states, without a gap",
            "",
            *sweeps_table(sweeps),
        ]
    )
    if options.window is not None:
        _print(["", "  (without windows, over the whole length)"])

    print(heading('What solver="auto" takes here'))
    for what, solver, reason in computation.choices():
        _print([entry(what, solver), entry("because", textwrap.fill(reason, 62))])
    print(heading("What to make of it"))
    for line in _conclusions(comparisons, computation.remark):
        _print([textwrap.fill(line, 84, initial_indent="  ", subsequent_indent="  ")])

    if picture is not None:
        story = picture.Story(
            f"{net.title.partition(' (')[0]} of {net.hidden} units over "
            f"{batch.inputs.shape[0]} x {length:,} samples, {options.dtype}, "
            f"on {computation.where}",
            batch,
            sweeps,
            comparisons,
            computation.tolerance,
            computation.eps,
        )
        try:
            picture.draw(story, options.picture)
        except OSError as error:
            raise UsageError(
                f"argument --picture: {options.picture} cannot be written "
                f"({error.strerror or error})"
            ) from error
        print(heading("Picture"))
        _print([options.picture])
    return 0


def _print_problem(options, net, batch, computation):
    values = batch.recording.values
    sequences, samples, columns = values.shape
    shape = f"{samples:,} samples"
    if columns > 1:
        shape += f" of {columns:,} columns"
    if sequences > 1:
        shape = f"{sequences:,} sequences of {shape}"
    if batch.recording.interval is not None:
        every = f"{batch.recording.interval * 1e3:g} ms"
        shape += f", one every {every}: {samples * batch.recording.interval:g} s"
    shape += f"\n{values.min():.4g} to {values.max():.4g} {batch.recording.unit}"
    length = batch.inputs.shape[1]
    steps = f"{length:,} steps"
    if length > samples:
        steps += f" (the recording {length / samples:.3g} times, end to end)"
    window = "" if options.window is None else f", in windows of {options.window:,}"
    size = f"{net.title}\n{net.hidden:,} units, state of {net.state_size:,} numbers"
    if net.state_size > _LARGE_STATE:
        block = f"{net.state_size:,} x {net.state_size:,}"
        size += f"\n(large: a sweep forms and multiplies {block} matrices)"
    cell = net.title.partition(" (")[0]
    print(f"{cell} over a recording: one step after the other, and all at once (DEER)")
    print(heading("Problem"))
    _print(
        [
            entry("recording", f"{batch.recording.title}\n{shape.rstrip()}"),
            entry("input", "the sample and its change since the last, standardised"),
            entry("batch", batch.description),
            entry("length", steps),
            entry("network", size),
            entry("weights", f"{net.num_weights:,}, random, seed {options.seed}"),
            entry("loss", "mean square error in predicting the next sample linearly"),
            entry("dtype", options.dtype),
            entry(
                "tolerance",
                f"{computation.tolerance:.2g} + {computation.tolerance:.2g} |state|"
                + window,
            ),
            entry("sequential", computation.sequential),
            entry("DEER", computation.parallel),
            entry("runs on", computation.where),
        ]
    )


def _print(lines):
    # At once, so that a person sees what is done while the rest is computed.
    print("\n".join(lines), flush=True)


def _complaint(comparison, computation):
    """What is wrong, if anything: then nothing else in the table means much."""
    if comparison.failure:
        text = f"DEER did not succeed. {comparison.failure}"
        if "`max_steps`" in text:
            text += f" (The demo allows {computation.most_sweeps} sweeps.)"
        return text
    if not comparison.agrees:
        return (
            f"The results differ by {comparison.deviation:.1e}, and tolerance and "
            f"rounding account for {comparison.allowed:.1e} only. Times of different "
            "results are not compared."
        )
    return ""


def _conclusions(comparisons, remark):
    """What was seen here, and where it would be otherwise; no number is guessed."""
    faster = [k.lower() for k, c in comparisons.items() if _ratio(c) >= 1]
    slower = [k.lower() for k, c in comparisons.items() if _ratio(c) < 1]
    yield "Both ways give the same numbers, to within tolerance."
    if faster:
        yield f"DEER was faster here for: {', '.join(faster)}."
    if slower:
        yield f"The sequential loop was faster here for: {', '.join(slower)}."
    if remark:
        yield remark
    yield (
        "DEER pays where one step after the other leaves a machine idle: on "
        "accelerators, over long sequences, with small states."
    )


def _ratio(comparison):
    return comparison.sequential.median / comparison.deer.median
