"""A flame graph of the decision front's thread, and its dearest steps, from samples of py-spy.

    python -m benchmarks.flame --py-spy PROGRAM > steps.txt

py-spy is no dependency of the project: install it into an environment of its own. A service
answers strict checks from its cache, 16 in flight, while it is sampled with its native frames. Of
the samples those of the thread that runs the event loop count, but for those in which it waits for
something to come in. Native functions are shown below the line of Python that called them.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from authz_service.server import prepare
from authz_service.stack.postgresql import postgresql
from authz_service.stack.valkey import valkey
from benchmarks import cached
from benchmarks.decisions import MEDIUM
from benchmarks.front import CHECK, Target, ask, load_client
from benchmarks.processes import service
from benchmarks.world import build

IN_FLIGHT = 16
WIDTH, ROW, LETTER = 1_200, 17, 6.6
# What takes less than this share is not drawn.
SHARE_MIN = 0.002
# In these it waits for something to come in.
IDLE = frozenset({"epoll_pwait", "epoll_wait"})
# It waits for the interpreter, which another thread has; py-spy may not know the call's name.
WAITING = "waits for the interpreter"
STEPS = 20

Stack = tuple[str, ...]


@dataclass
class _Node:
    """A function below those that called it."""

    count: int = 0
    below: dict[str, "_Node"] = field(default_factory=dict)


def stacks(lines: Iterable[str], thread: str) -> Counter[Stack]:
    """Returns the stacks of a thread, outermost first, with how often each was seen.

    Args:
        lines: As ``py-spy record --format raw --native --threads`` writes them.
    """
    found: Counter[Stack] = Counter()
    for line in lines:
        text, _, count = line.rpartition(" ")
        first, *frames = text.split(";")
        if first.rpartition(": ")[2] != thread:
            continue
        names = [_name(frame) for frame in frames]
        if any(name.partition(" ")[0] in IDLE for name in names):
            continue
        # Above the loop there is only what started the thread.
        start = next((n for n, name in enumerate(names) if "Front._run" in name or
                      "LoopThread._run" in name), 0)  # fmt: skip
        found[_shortened(names[start:])] += int(count)
    return found


def _name(frame: str) -> str:
    """Returns a function without its line, and its file without anything of this machine."""
    match = re.fullmatch(r"(.+?) \((.+?)(?::\d+)?\)", frame)
    if match is None:
        return frame
    function, file = match.groups()
    parts = file.split("/")
    if "authz_service" in parts:
        file = "/".join(parts[parts.index("authz_service") :])
    else:
        file = "/".join(parts[-2:]) if file.endswith(".py") else parts[-1]
    return f"{function} ({file})"


def _shortened(names: Sequence[str]) -> Stack:
    """Leaves out what only says how the interpreter and the loop call."""
    for number, name in enumerate(names):
        if name.startswith(("pthread_cond_timedwait", "pthread_cond_wait")):
            return (*names[:number], WAITING)
    return tuple(names)


def tree(found: Counter[Stack]) -> _Node:
    """Returns all stacks as one tree."""
    root = _Node()
    for stack, count in found.items():
        node = root
        node.count += count
        for name in stack:
            node = node.below.setdefault(name, _Node())
            node.count += count
    return root


def svg(root: _Node, title: str) -> str:
    """Draws a tree, callers below what they call."""
    boxes: list[tuple[int, float, float, str, int]] = []
    least = root.count * SHARE_MIN

    def place(node: _Node, name: str, depth: int, at: float) -> None:
        if node.count < least:
            return
        boxes.append((depth, at, node.count / root.count * WIDTH, name, node.count))
        for below, child in sorted(node.below.items()):
            place(child, below, depth + 1, at)
            at += child.count / root.count * WIDTH

    place(root, "all", 0, 0.0)
    height = (max(box[0] for box in boxes) + 1) * ROW + 30
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="monospace" font-size="11">',
        f'<text x="6" y="16">{escape(title)}</text>',
    ]
    for depth, at, width, name, count in boxes:
        top = height - (depth + 1) * ROW
        share = f"{count / root.count:.1%}"
        room = int((width - 4) / LETTER)
        shown = "" if room < 4 else name if len(name) <= room else name[: room - 2] + ".."
        drawn.append(
            f"<g><title>{escape(name)} {share}</title>"
            f'<rect x="{at:.1f}" y="{top}" width="{max(width - 0.5, 0.5):.1f}" '
            f'height="{ROW - 1}" fill="{_colour(name)}"/>'
            + (f'<text x="{at + 2:.1f}" y="{top + 12}">{escape(shown)}</text>' if shown else "")
            + "</g>"
        )
    return "\n".join(drawn) + "\n</svg>\n"


def _colour(name: str) -> str:
    """Ours warm, the library's pale, native grey, waiting blue."""
    if name == WAITING:
        return "#8fb8de"
    if "(authz_service/" in name:
        return f"hsl({20 + sum(name.encode()) % 30},85%,66%)"
    return "#f3e3a2" if ".py)" in name else "#cfcfcf"


def steps(found: Counter[Stack]) -> str:
    """Returns functions of Python by their share: with what they call, native code and all."""
    everything = found.total()
    alone: Counter[str] = Counter()
    with_calls: Counter[str] = Counter()
    for stack, count in found.items():
        ours = [name for name in stack if ".py)" in name]
        if stack[-1] == WAITING:
            alone[WAITING] += count
            with_calls[WAITING] += count
        elif ours:
            alone[ours[-1]] += count
        for name in set(ours):
            with_calls[name] += count
    lines = [f"{everything} samples", "  alone  with what it calls"]
    lines += [
        f"{count / everything:7.1%} {with_calls[name] / everything:7.1%}  {name}"
        for name, count in alone.most_common(STEPS)
    ]
    lines.append("  with what it calls")
    lines += [
        f"{count / everything:7.1%}  {name}" for name, count in with_calls.most_common(3 * STEPS)
    ]
    return "\n".join(lines) + "\n"


def sampled(py_spy: str, *, seconds: int, rate: int) -> list[str]:
    """Samples a service under load and returns py-spy's lines."""
    with (
        load_client() as program,
        postgresql() as database,
        valkey() as redis,
        tempfile.TemporaryDirectory(prefix="authz-flame-") as folder,
    ):
        url = database.url_of("postgres")
        prepare(url)
        strict = cached.questions(build(url, **MEDIUM), calls=1)[0].requests
        address = f"unix:{folder}/decisions"
        with service(url, AUTHZ_REDIS_URL=redis.url, AUTHZ_DECISIONS_LISTEN=address) as served:
            target = Target(address, CHECK, served.bearer, (served.pid,), strict)
            warm = ask(program, replace(target, pids=()), calls=40_000, in_flight=IN_FLIGHT)
            raw = Path(folder) / "raw"
            recording = subprocess.Popen(
                [py_spy, "record", "--format", "raw", "--native", "--threads", "--idle",
                 "--rate", str(rate), "--duration", str(seconds), "--pid", str(served.pid),
                 "--output", str(raw)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            while recording.poll() is None:
                ask(program, target, calls=int(warm["calls"] / warm["seconds"]), in_flight=16)
            if recording.returncode:
                raise RuntimeError(f"py-spy ended with {recording.returncode}")
            return raw.read_text().splitlines()


def main() -> None:
    """Writes the graph, and the steps to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--py-spy", default="py-spy", help="the program")
    parser.add_argument("--samples", type=Path, help="of an earlier run, instead of a new one")
    parser.add_argument("--thread", default="decisions", help="that runs the event loop")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rate", type=int, default=200, help="samples a second")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results/decision-front.svg"
    )
    options = parser.parse_args()
    if options.samples:
        lines = options.samples.read_text().splitlines()
    else:
        lines = sampled(options.py_spy, seconds=options.seconds, rate=options.rate)
    found = stacks(lines, options.thread)
    if not found:
        raise SystemExit(f"no samples of a thread {options.thread}")
    title = f"Strict Check from the cache, {IN_FLIGHT} in flight: {found.total()} samples"
    options.output.write_text(svg(tree(found), title))
    sys.stdout.write(steps(found))


if __name__ == "__main__":
    main()
