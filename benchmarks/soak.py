"""Many nights in minutes: does every one end in a valid live model, whatever happens to the photos and to the machine?

    python -m benchmarks.soak --nights 60 --seed 0

Each night something happens to a folder of drawn flowers, then ``luigi --module pipeline Retrain`` runs as cron would start
it. Photos are added, removed, moved, edited, cut short and relabelled; a batch comes with wrong labels; a run is killed with -9 at
some moment; the disk is full; the clock is set back. After each night:

- the live version is whole (every hash), loads, and names flowers rightly that it never saw, wrong labels or not;
- no vector was computed twice: never more of them, in all nights, than there were different photos;
- the night's record says what came of it;
- what the photos no longer need is pruned, now and then, and the rest does not grow.

Two things are stood in for. A full disk is a limit on the size of a file that a process may write (RLIMIT_FSIZE), which fails in the same
places, and with nothing to clean up. A clock that is set back is an earlier date for the record, and photos from years ago.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

from pipeline import console, files, nights, registry, sample
from pipeline.classifier import Classifier, load
from pipeline.console import say

DATA = "flowers"
KINDS = sorted(sample.KINDS)

# Test photos enough for the gate, whose limits are the default ones, to tell a bad batch from chance.
FIRST_PER_KIND, ADDED, UNSEEN_PER_KIND = 60, 6, 8
FIRST_NIGHT = date(2026, 1, 1)
PROFILE = """[Export]
how_many_training_steps = 150
eval_step_interval = 25
testing_percentage = 30
weight_decay = 0.003
"""
LEAST_ACCURACY = 0.8
"""Of any live version on flowers that it never saw. The first one has about 0.95."""

GROWTH = 1.6
"""By how much the pruned project may outgrow its size after the first pruning; the photos themselves grow by about half."""

NIGHTS_BETWEEN_PRUNING = 10
KILL_SECONDS = (0.3, 12.0)
LIMIT_BYTES = (2_000, 20_000_000)
SEED_OF_UNSEEN = 10**6


class Broken(Exception):
    """A promise was not kept."""


@dataclass
class Site:
    """A project whose nights are played.

    Attributes:
        root: its folder, with a luigi.cfg and the profile of the data set.
        rng: decides what happens.
        played: nights so far.
        contents: SHA-256 of all photos that there ever were.
        computed: vectors that were computed, by the key of the run.
        undo: puts a batch of wrongly labelled photos back; None while there is none.
        astray: a single photo with a wrong label, if there is one; and what ``kind_of`` flower it is.
    """

    root: Path
    rng: random.Random
    drawn: int = 0
    played: int = 0
    contents: set[str] = field(default_factory=set)
    computed: dict[str, int] = field(default_factory=dict)
    undo: Callable[[], None] | None = None
    astray: Path | None = None
    kind_of: dict[str, str] = field(default_factory=dict)

    # --- What happens to photos -----------------------------------------------------------------------------------

    @property
    def photos(self) -> list[Path]:
        return sorted((self.root / "data" / DATA).rglob("*.jpg"))

    def add(self, count: int) -> list[Path]:
        """Draw new photos, of each kind in turn."""
        added = []
        for _ in range(count):
            kind = KINDS[self.drawn % len(KINDS)]
            path = self.root / "data" / DATA / kind / f"{self.drawn:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            sample.draw_picture(kind, self.drawn, 0).save(path, quality=88)
            self.drawn += 1
            added.append(path)
        return added

    def some(self, count: int) -> list[Path]:
        return self.rng.sample(self.photos, count)

    def note_contents(self) -> None:
        self.contents |= {files.sha256_file(path) for path in self.photos}

    # --- Runs -----------------------------------------------------------------------------------------------------

    def start(self, when: date, **options: object) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("luigi")), "--module", "pipeline", "Retrain", "--data", DATA, "--date", str(when)]
        environment = {name: value for name, value in os.environ.items() if name != "LUIGI_CONFIG_PATH"}
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,  # type: ignore[call-overload]
        )

    def retrain(self, when: date) -> nights.Record:
        """A run that has to succeed; its record."""
        process = self.start(when)
        output, _ = process.communicate()
        if process.returncode:
            raise Broken(f"exit code {process.returncode}: {output}")
        record = nights.read(self.record(when))
        if record is None or record.failed:
            raise Broken(f"no record of {when}: {output}")
        return record

    def record(self, when: date) -> Path:
        return self.root / "store" / "nights" / DATA / f"{when}.json"

    def command(self, *arguments: str) -> str:
        """``python -m pipeline …``, which has to succeed; what it says."""
        done = subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=self.root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Broken(f"{' '.join(arguments)}: {done.stderr}")
        return done.stdout

    @property
    def exports(self) -> Path:
        return self.root / "exports" / DATA

    def megabytes(self) -> float:
        """Of all that the pipeline made, but for models, which stay."""
        kept = [self.root / "store" / name for name in ("runs", "work", "vectors", "snapshots", "scans", "nights")]
        return sum(path.stat().st_size for folder in [*kept, self.exports] for path in folder.rglob("*") if path.is_file()) / 1e6


# --- Nights: each does something, runs, and says what came of it --------------------------------------------------------

Night = Callable[[Site, date], nights.Record]


def nothing(site: Site, when: date) -> nights.Record:
    record = site.retrain(when)
    if record.outcome.status not in (nights.NOTHING, nights.NOT_LIVE):
        raise Broken(f"nothing happened, and yet: {record.sentence}")
    return record


def added(site: Site, when: date) -> nights.Record:
    site.add(ADDED)
    return site.retrain(when)


def removed(site: Site, when: date) -> nights.Record:
    for path in site.some(2):
        path.unlink()
    return site.retrain(when)


def moved(site: Site, when: date) -> nights.Record:
    """Renamed within their class: no vector is computed."""
    for number, path in enumerate(site.some(3)):
        path.rename(path.with_name(f"moved-{site.played}-{number}.jpg"))
    return site.retrain(when)


def edited(site: Site, when: date) -> nights.Record:
    for path in site.some(2):
        sample.draw_picture(path.parent.name, site.drawn, 1).save(path, quality=90)
        site.drawn += len(KINDS)
    return site.retrain(when)


def corrupted(site: Site, when: date) -> nights.Record:
    """Cut short, and not photos at all."""
    cut, replaced = site.some(2)
    os.truncate(cut, cut.stat().st_size // 2)
    replaced.write_text("<html>404</html>")
    return site.retrain(when)


def relabelled(site: Site, when: date) -> nights.Record:
    """A photo gets a wrong label, and the next time its own one back: its vector is not computed again."""
    astray = site.astray if site.astray and site.astray.exists() else None
    path = astray or site.some(1)[0]
    kind = site.kind_of[path.name] if astray else site.rng.choice([kind for kind in KINDS if kind != path.parent.name])
    moved_to = path.parent.parent / kind / path.name
    site.kind_of.setdefault(path.name, path.parent.name)
    path.rename(moved_to)
    site.astray = None if astray else moved_to
    return site.retrain(when)


def bad_labels(site: Site, when: date) -> nights.Record:
    """A batch with wrong labels: many new photos of one kind in the folder of another, or half of each in the other's.

    It must not ship. The next night it is put right.
    """
    before = registry.live(site.exports)
    site.undo = (_newcomers if site.rng.random() < 0.5 else _mixed)(site, *site.rng.sample(KINDS, 2))
    record = site.retrain(when)
    if record.outcome.status != nights.REJECTED or registry.live(site.exports) != before:
        raise Broken(f"a batch with wrong labels was shipped: {record.sentence}")
    return record


def _newcomers(site: Site, kind: str, other: str) -> Callable[[], None]:
    folder = site.root / "data" / DATA
    wrong = [folder / other / f"wrong-{site.drawn + number}.jpg" for number in range(2 * len(list((folder / kind).iterdir())))]
    for path in wrong:
        sample.draw_picture(kind, site.drawn, 2).save(path, quality=88)
        site.drawn += 1

    def undo() -> None:
        for path in wrong:
            path.unlink()

    return undo


def _mixed(site: Site, kind: str, other: str) -> Callable[[], None]:
    folder = site.root / "data" / DATA
    moves = []
    for one, two in ((kind, other), (other, kind)):
        photos = sorted((folder / one).iterdir())
        moves += [(path, folder / two / f"wrong-{path.name}") for path in site.rng.sample(photos, len(photos) // 2)]
    for path, moved_to in moves:
        path.rename(moved_to)

    def undo() -> None:
        for path, moved_to in moves:
            moved_to.rename(path)

    return undo


def mended(site: Site, when: date) -> nights.Record:
    assert site.undo
    site.undo()
    site.undo = None
    return site.retrain(when)


def killed(site: Site, when: date) -> nights.Record:
    """Killed with -9 at some moment, the program alone or with its workers, and started again."""
    site.add(ADDED)
    site.note_contents()
    process = site.start(when)
    try:
        process.wait(site.rng.uniform(*KILL_SECONDS))
    except subprocess.TimeoutExpired:
        (os.killpg if site.rng.random() < 0.5 else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()  # ends once all who write to it have: the workers notice that they are alone
    check_live(site)
    return site.retrain(when)


def disk_full(site: Site, when: date) -> nights.Record:
    """No file may grow beyond some size; then there is room again."""
    site.add(ADDED)
    site.note_contents()
    low, high = LIMIT_BYTES
    limit = int(low * (high / low) ** site.rng.random())

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = site.start(when, preexec_fn=full)
    output, _ = process.communicate()
    if process.returncode not in (0, 30, 35, 40):
        raise Broken(f"a full disk ended in exit code {process.returncode}: {output}")
    check_live(site)
    return site.retrain(when)


def clock_back(site: Site, when: date) -> nights.Record:
    """The clock shows a night that was, and then the right one again; new photos look years old."""
    for path in site.add(ADDED):
        os.utime(path, (10**9, 10**9))
    yesterday = when - timedelta(days=1)
    kept, live = files.sha256_file(site.record(yesterday)), registry.live(site.exports)
    site.retrain(yesterday)
    if files.sha256_file(site.record(yesterday)) != kept or registry.live(site.exports) != live:
        raise Broken(f"the night of {yesterday} was done twice")
    return site.retrain(when)


HAPPENS: dict[str, Night] = {
    "added": added,
    "nothing": nothing,
    "removed": removed,
    "moved": moved,
    "edited": edited,
    "corrupted": corrupted,
    "relabelled": relabelled,
    "bad labels": bad_labels,
    "mended": mended,
    "killed": killed,
    "disk full": disk_full,
    "clock back": clock_back,
}
SHARES = {"added": 3, "nothing": 3, "killed": 3, "bad labels": 2, "disk full": 2, "mended": 0}


def plan(count: int, rng: random.Random) -> list[str]:
    """What happens in which night, all of it about as often as in ``SHARES``. After wrong labels comes mending."""
    pool = [name for name in HAPPENS for _ in range(SHARES.get(name, 1))]
    planned = ["added"]
    while len(planned) < count:
        for name in rng.sample(pool, len(pool)):
            planned += [name, "mended"] if name == "bad labels" else [name]
    return planned[:count]


# --- What has to hold ---------------------------------------------------------------------------------------------------


def unseen(folder: Path) -> list[tuple[Path, str]]:
    """Flowers that no night trains on, with their kinds."""
    found = []
    for kind in KINDS:
        for number in range(UNSEEN_PER_KIND):
            path = folder / f"{kind}-{number}.jpg"
            if not path.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                sample.draw_picture(kind, number, SEED_OF_UNSEEN).save(path, quality=88)
            found.append((path, kind))
    return found


def check_live(site: Site) -> float | None:
    """The accuracy of the live version on unseen flowers, None before the first one. Raises Broken where it is not whole, or bad."""
    version = registry.live(site.exports)
    if version is None:
        if site.played:
            raise Broken("there is no live version")
        return None
    if damage := files.damage(version, contents=True):
        raise Broken(f"{version} is damaged: {damage}")
    accuracy = _accuracy(load(version), unseen(site.root / "unseen"))
    if accuracy < LEAST_ACCURACY:
        raise Broken(f"{version} names {accuracy:.0%} of unseen flowers rightly")
    return accuracy


def _accuracy(classifier: Classifier, photos: Sequence[tuple[Path, str]]) -> float:
    said = list(classifier.predict([path for path, _ in photos]))
    return sum(not one.problem and one.scores[0].label == kind for one, (_, kind) in zip(said, photos)) / len(photos)


def check_vectors(site: Site) -> int:
    """How many vectors were computed in all. Raises Broken where those are more than there were photos."""
    manifests = [files.read_manifest(folder) for folder in (site.root / "store/runs/ComputeBottlenecks").glob("*")]
    site.computed.update({manifest["key"]: manifest["computed"] for manifest in manifests if manifest})
    computed = sum(site.computed.values())
    if computed > len(site.contents):
        raise Broken(f"{computed} vectors were computed of {len(site.contents)} different photos")
    return computed


def prune(site: Site) -> None:
    """As docs/operations.md has it."""
    site.command("exports", "prune", "--keep", "3", "--delete")
    site.command("runs", "prune", "--keep", "3", "--delete")
    site.command("cache", "prune", "--delete")


# --- All of it ----------------------------------------------------------------------------------------------------------


def play(root: Path, planned: Sequence[str], seed: int) -> None:
    """Play nights in the folder ``root``, which has a luigi.cfg. Raises Broken where something does not hold."""
    site = Site(root, random.Random(seed))
    (root / "configs").mkdir(exist_ok=True)
    (root / "configs" / f"{DATA}.cfg").write_text(PROFILE)
    site.add(FIRST_PER_KIND * len(KINDS))
    after_pruning = 0.0
    for number, name in enumerate(planned):
        started = time.monotonic()
        record = HAPPENS[name](site, FIRST_NIGHT + timedelta(days=number))
        site.note_contents()
        site.played += 1
        accuracy, computed = check_live(site), check_vectors(site)
        seconds = time.monotonic() - started
        say(
            f"night {number + 1}, {name}: {record.sentence} [{accuracy:.0%} of unseen flowers; {computed} vectors of "
            f"{len(site.contents)} photos; {site.megabytes():.0f} MB; {seconds:.0f} s]"
        )
        if (number + 1) % NIGHTS_BETWEEN_PRUNING == 0:
            prune(site)
            check_live(site)
            size = site.megabytes()
            say(f"pruned: {size:.0f} MB")
            after_pruning = after_pruning or size
            if size > GROWTH * after_pruning:
                raise Broken(f"{size:.0f} MB after pruning, and {after_pruning:.0f} MB the first time")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Play many nights, and look whether all promises hold.")
    parser.add_argument("--nights", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to play, and to leave all (default: a temporary folder)")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary) / "project"
        root.mkdir(parents=True)
        shutil.copy(Path(__file__).resolve().parent.parent / "luigi.cfg", root)
        try:
            play(root, plan(options.nights, random.Random(options.seed)), options.seed)
        except Broken as problem:
            console.complain(str(problem))
            return 1
    say(f"{options.nights} nights in {(time.monotonic() - started) / 60:.0f} minutes: every one ended in a valid live model")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
