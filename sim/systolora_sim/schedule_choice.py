"""What a user's name of a schedule stands for: one of `schedules.SCHEDULES`, or "best".

"best" is what `scheduler` finds for a training step. A layer or product without training is "auto"
then: it has no step to time.
"""

from systolora.config import AcceleratorConfig
from systolora_sim.limits import CompileError
from systolora_sim.schedules import SCHEDULES, StepSchedule
from systolora_sim.training import TrainingState

__all__ = ["CHOICES", "check_choice", "find_schedule", "without_training"]

BEST = "best"
CHOICES = (*SCHEDULES, BEST)
#: Of memory, cycles.
LATENCY = 40


def check_choice(name: str) -> None:
    """Raises CompileError if there is no such schedule."""
    if name not in CHOICES:
        raise CompileError(f"schedule = {name!r}: must be one of {', '.join(CHOICES)}")


def without_training(name: str) -> str:
    """The schedule of a layer's passes, or of a product; raises CompileError."""
    check_choice(name)
    return "auto" if name == BEST else name


def find_schedule(
    name: str,
    state: TrainingState,
    config: AcceleratorConfig,
    *,
    memory_latency: int = LATENCY,
    cache_base: bool = False,
    progress: bool = False,
) -> str | StepSchedule:
    """The schedule of a training step, for `lowering.compile_training`.

    Parameters
    ----------
    name : one of `CHOICES`
    memory_latency : cycles of a read: of "best"
    cache_base : as of `compile_training`
    progress : whether stderr shows how many schedules were timed

    Raises
    ------
    CompileError
        If there is no such schedule, or the configuration cannot compute the step.
    """
    check_choice(name)
    if name != BEST:
        return name
    # Here: what is not compiled needs neither.
    from systolora_sim.scheduler import pick
    from systolora_sim.train_runner import bar

    with bar(0, progress, "schedules") as update:
        found = pick(
            state, config, memory_latency=memory_latency, progress=update, cache_base=cache_base
        )
    return found.schedule
