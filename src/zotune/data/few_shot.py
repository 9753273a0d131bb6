"""Few-shot data: the same number of examples of each label, to train on and to hold out (k-shot, as in MeZO).

Gao et al., 2021 (arXiv 2012.15723) and Malladi et al., 2023 (arXiv 2305.17333) draw both sets from the training data,
k examples of each label for either, with five seeds.
"""

from collections.abc import Sequence

from zotune.data.records import T
from zotune.data.tasks import Task
from zotune.errors import InputError
from zotune.zo.draws import permutation


def draw_per_class(
    examples: Sequence[T], labels: Sequence[int], num: int, seed: int, task: Task, hold_out: bool
) -> tuple[list[T], list[T]]:
    """(`num` examples of each label, and where `hold_out` as many others of each), in the order of the data.

    Which of a label's examples are drawn depends on the seed, the label's id and their number alone.

    Raises:
        InputError: a label has too few.
    """
    needed = 2 * num if hold_out else num
    of_label: list[list[int]] = [[] for _ in task.labels]
    for place, label in enumerate(labels):
        of_label[label].append(place)
    rarest = min(range(len(of_label)), key=lambda label: len(of_label[label]))
    if (count := len(of_label[rarest])) < needed:
        what = f" ({num} to train on, {num} to hold out)" if hold_out else ""
        remedy = "lower it, or give --eval-data" if hold_out else "lower it"
        raise InputError(
            f"--num-per-class {num} needs {needed} examples of each label{what}, and --train-data has {count} to draw "
            f"from of label {task.label_names[rarest]!r}; {remedy}"
        )
    kept: set[int] = set()
    held_out: set[int] = set()
    for label, places in enumerate(of_label):
        drawn = [places[i] for i in permutation(seed, f"class/{label}", len(places))[:needed]]
        kept.update(drawn[:num])
        held_out.update(drawn[num:])
    return [examples[place] for place in sorted(kept)], [examples[place] for place in sorted(held_out)]
