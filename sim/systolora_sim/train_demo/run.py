"""The whole demonstration: pre-training, then every recipe with every seed, then the report.

Everything done is a file in the directory: the same call goes on where the last one was stopped.
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from systolora_sim.train_demo import checkpoint
from systolora_sim.train_demo.data import load_images
from systolora_sim.train_demo.errors import DemoError
from systolora_sim.train_demo.figures import summarize
from systolora_sim.train_demo.finetune import Task, Workbench, fine_tune
from systolora_sim.train_demo.metrics import Judge
from systolora_sim.train_demo.presets import settings_from_json, settings_json
from systolora_sim.train_demo.pretrain import pretrain, train_classifier
from systolora_sim.train_demo.recipes import ABLATION, RECIPES
from systolora_sim.train_demo.settings import Settings
from systolora_sim.train_demo.views import write_views

__all__ = ["run_demo", "tasks"]


def tasks(settings: Settings) -> list[Task]:
    """All runs, in the order in which they are done: recipe by recipe, then the ablation."""
    made = [
        Task(name, RECIPES[name], seed, True)
        for name in settings.recipes
        for seed in range(settings.seeds)
    ]
    made += [
        Task(name, ABLATION[name], seed, False)
        for name in settings.ablation
        for seed in range(settings.ablation_seeds)
    ]
    return made


def run_demo(
    settings: Settings, directory: Path, *, jobs: int = 1, progress: bool = True
) -> dict[str, Any]:
    """Runs what is not done yet and writes the report (report.html, report.json, PNGs).

    Parameters
    ----------
    jobs : int
        Processes that fine-tune side by side, each on one core; the figures stay the same.
    progress : bool
        A progress bar on stderr, where that is a terminal.

    Raises
    ------
    DemoError
        If the directory holds a run with other settings, or a file in it cannot be read.
    """
    try:
        _claim(settings, directory)
        with _one_core(), _bar(settings, progress) as advance:
            bench, found = _prepare(settings, directory, advance)
            results = _run_all(bench, tasks(settings), jobs, advance)
        report = summarize(settings, found, results)
        write_views(report, found["real"], directory)
    except DemoError:
        raise
    except ValueError as error:
        if str(error).startswith(str(directory)):
            raise DemoError(str(error)) from None
        raise
    return report


def _claim(settings: Settings, directory: Path) -> None:
    """Makes the directory this run's, or sees that it is."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "settings.json"
    there = checkpoint.load_json(path)
    if there is None:
        checkpoint.save_json(path, settings_json(settings))
    elif settings_from_json(there) != settings:
        raise DemoError(
            f"{path}: of a run with other settings ({there.get('digest', '?')}, not "
            f"{settings.digest}): choose another directory"
        )


@contextmanager
def _one_core() -> Iterator[None]:
    """One thread: sums in one order, and as fast as more at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _bar(settings: Settings, shown: bool) -> Iterator[Callable[[int], None]]:
    from tqdm import tqdm

    total = settings.classifier_steps + settings.pretrain_steps
    total += len(tasks(settings)) * settings.steps
    hidden = None if shown else True  # None: hidden where stderr is no terminal
    with tqdm(total=total, unit=" steps", file=sys.stderr, disable=hidden) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance


def _prepare(
    settings: Settings, directory: Path, advance: Callable[[int], None]
) -> tuple[Workbench, dict[str, Any]]:
    """The workbench, and what is known before fine-tuning."""
    images = load_images(settings.data)
    classifier, accuracy = train_classifier(images, settings, directory, advance)
    weights, losses = pretrain(images, settings, directory, advance)
    judge = Judge(classifier, images, settings.concept)
    found = {
        "source": images.source,
        "size": images.train.shape[-1],
        "images": {"train": len(images.train), "test": len(images.test)},
        "real": images.of(settings.concept, "test")[:8],
        "pretrain_losses": losses,
        "floors": judge.floors() | {"classifier_accuracy": accuracy},
    }
    return Workbench(settings, images, weights, judge, directory), found


# Fine-tuning, in this process or in several ---------------------------------------------------


def _run_all(
    bench: Workbench, todo: list[Task], jobs: int, advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    if jobs == 1:
        return [fine_tune(bench, task, advance) for task in todo]
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    arguments = (bench.settings, bench.directory, counter)
    with ProcessPoolExecutor(jobs, context, _start_worker, arguments) as pool:
        futures = [pool.submit(_work, task) for task in todo]
        told, pending = 0, set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                advance(counter.value - told)
                told = counter.value
        except BaseException:
            # What they have not saved is done again by the next call
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        return [future.result() for future in futures]


@dataclass
class _Worker:
    bench: Workbench
    counter: Any


_WORKER: list[_Worker] = []


def _start_worker(settings: Settings, directory: Path, counter: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a word; the first process speaks
    torch.set_num_threads(1)
    bench, _ = _prepare(settings, directory, lambda count: None)
    _WORKER[:] = [_Worker(bench, counter)]


def _work(task: Task) -> dict[str, Any]:
    worker = _WORKER[0]

    def advance(count: int) -> None:
        with worker.counter.get_lock():
            worker.counter.value += count

    return fine_tune(worker.bench, task, advance)
