"""What a transferred vector is measured beside: each baseline by its name, built where it applies."""

from __future__ import annotations

from collections.abc import Callable, Collection

from cast.extraction import label_prior, of_equal_norm, own_seed
from cast.transfers.course import Course
from laai.evaluation import Arm
from laai.prompts import demonstrations_of, fitting, fitting_own
from laai.steering import Intervention


def cross_task_few_shot(course: Course) -> Arm | None:
    """As many examples of the heaviest source before the query as the vector has samples, or as fit."""
    sources, data, settings = course.drawn.sources, course.drawn.data, course.settings
    heaviest = max(sources, key=lambda task: sources[task])
    offered = demonstrations_of(heaviest, min(settings.samples, len(heaviest.examples)), settings.seed)
    shown = fitting(course.model, data.template(course.model.tokenizer), offered, data.splits.test)
    return None if shown is None else Arm("cross-task few-shot", before=shown)


def few_shot(course: Course) -> Arm | None:
    """Demonstrations of the target before the query, as many as fit."""
    data = course.drawn.data
    fits = fitting_own(course.model, data.template(course.model.tokenizer), data.splits.train, data.splits.test)
    return Arm("few-shot", demonstrations=fits) if fits else None


def prior_alone(course: Course) -> Arm | None:
    """The label prior of the model without a vector."""
    model, drawn = course.model, course.drawn
    nothing = Intervention.zeros(model, "residual", [0])
    prior = label_prior(model, nothing, drawn.template, drawn.examples) if drawn.calibrates else None
    return None if prior is None else Arm("label prior", prior)


def transferred(course: Course) -> Arm:
    """The transferred vector, or the model alone where it is refused."""
    return Arm("cast", None if course.refused else course.steering)


def random_direction(course: Course) -> Arm | None:
    """Random directions of the vector's norms at its placement."""
    if not course.placement.scale:
        return None
    draw = own_seed(course.settings.seed, course.drawn.data.task.name, *(task.name for task in course.drawn.sources))
    direction = of_equal_norm(course.model, course.placement.of(course.vector), draw)
    return Arm("random direction", course.finished(direction))


def random_samples(course: Course) -> Arm | None:
    """A vector of samples that are drawn at random, where the others were selected."""
    return Arm("random samples", course.of_random_samples()) if course.selected else None


ARMS: dict[str, Callable[[Course], Arm | None]] = {
    "cross-task few-shot": cross_task_few_shot,
    "few-shot": few_shot,
    "label prior": prior_alone,
    "cast": transferred,
    "random direction": random_direction,
    "random samples": random_samples,
}
"""Behind the methods of `laai.methods` that need nothing of a transfer, in the order of the table."""
BASELINES = ("zero-shot", *(name for name in ARMS if name != "cast"))


def arms_of(course: Course, baselines: Collection[str]) -> list[str | Arm]:
    """The vector and these baselines, as far as they apply, in the order of the table."""
    common = [name for name in BASELINES if name in baselines and name not in ARMS]
    built = [build(course) for name, build in ARMS.items() if name in (*baselines, "cast")]
    return [*common, *(arm for arm in built if arm is not None)]
