"""What a command found, as tables on standard output."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.table import Table

from zotune.run.metrics import wilson_interval

SHOWN = 160  # characters of a text in a table

if TYPE_CHECKING:
    from zotune.tools.analyze import Analysis
    from zotune.tools.profile import Region


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """The table at the end of a run, on standard output."""
    table = Table(title=f"{summary['task']} on {summary['model']}, {summary['steps']} steps", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    initial, final = summary["initial"], summary["final"]
    if initial and final:
        if final["accuracy"] is not None:
            table.add_row("held-out accuracy", _accuracy(initial), _accuracy(final))
        if final.get("measured"):
            table.add_row("held-out reward", *(f"{each['measured']['reward']:.4f}" for each in (initial, final)))
            if gain := summary["reward_gain"]:
                what = f"{gain['mean']:+.4f} ± {gain['half_interval_95']:.4f} (p = {gain['p_value']:.2g})"
                table.add_row("gain, prompt by prompt", "", what)
        else:
            table.add_row("held-out loss", f"{initial['loss']:.4f}", f"{final['loss']:.4f}")
        for name, value in final.get("scores", {}).items():
            before = initial.get("scores", {}).get(name)
            table.add_row(name, "" if before is None else f"{before:.4g}", f"{value:.4g}")
        table.add_row("held-out examples", "", f"{final['num_examples']:,}")
        table.add_section()
    table.add_row("steps/s", "", f"{summary['steps_per_s']:.2f}")
    table.add_row("tokens computed", "", f"{summary['tokens_computed']:,}")
    table.add_row("tokens reused", "", f"{summary['tokens_reused']:,} ({summary['kv_reuse']:.1%})")
    table.add_row("peak memory", "", f"{summary['peak_memory_bytes'] / 2**20:,.0f} MiB")
    console = plain_console()
    console.print(table)
    if worse := summary["worse_than_initial"]:
        console.print(
            f"{' and '.join(worse)} on held-out data got worse: lower --learning-rate, or take the best evaluation's "
            f"{summary['exported']}, {folder / 'best'}",
            soft_wrap=True,
        )
    console.print(f"run folder: {folder} ({summary['exported']}: {folder / summary['exported']})", soft_wrap=True)


def print_samples(console: RichConsole, samples: Sequence[Mapping[str, Any]]) -> None:
    """The best, the middle and the worst of the texts that a model wrote, with their rewards."""
    table = Table("reward", "prompt", "completion", title_justify="left")
    judged = sorted((line for line in samples if line["reward"] is not None), key=lambda line: -line["reward"])
    for place in sorted({0, len(judged) // 2, len(judged) - 1}) if judged else ():
        line = judged[place]
        prompt = line["prompt"] if isinstance(line["prompt"], str) else line["prompt"][-1]["content"]
        table.add_row(f"{line['reward']:.3g}", _short(prompt), _short(line["completion"]))
    console.print(table)


def _short(text: str) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} ..."


def print_probe(found: dict[str, Any]) -> None:
    """The scores of a linear probe as a table, on standard output."""
    table = Table(show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("accuracy", _accuracy(found))
    table.add_row("macro F1", f"{found['macro_f1']:.1%}")
    table.add_row("training examples", f"{found['num_train']:,}")
    table.add_row("examples", f"{found['num_examples']:,}")
    plain_console().print(table)


def print_evaluation(metrics: dict[str, Any]) -> None:
    """One evaluation as a table, on standard output."""
    table = Table()
    table.add_column("")
    table.add_column("", justify="right")
    if metrics["accuracy"] is not None:
        table.add_row("accuracy", _accuracy(metrics))
    for name, title in (("macro_f1", "macro F1"), ("exact_match", "exact match"), ("token_f1", "token F1")):
        if metrics[name] is not None:
            table.add_row(title, f"{metrics[name]:.1%}")
    for name, value in metrics["measured"].items():
        table.add_row(name, f"{value:.4f}")
    for name, value in metrics["scores"].items():
        table.add_row(name, f"{value:.4g}")
    if not metrics["measured"]:
        table.add_row("loss", f"{metrics['loss']:.4f}")
    table.add_row("examples", f"{metrics['num_examples']:,}")
    table.show_header = False
    plain_console().print(table)


def print_analysis(analysis: "Analysis") -> None:
    """Slopes over eps, then the two passes' KV layer by layer, on standard output."""
    console = plain_console()
    of_reuse = ("error with reused KV", "same sign", "|dK|/|K|", "|dV|/|V|") if analysis.reuse else ()
    table = Table("eps", "|slope|", "curvature", "moves", *of_reuse)
    for row, reuse in zip_longest(analysis.rows, analysis.reuse):
        found = [
            f"{reuse.error:.1%}", f"{reuse.sign_agreement:.0%}", f"{reuse.key_difference:.1e}",
            f"{reuse.value_difference:.1e}",
        ] if reuse else []  # fmt: skip
        table.add_row(f"{row.epsilon:g}", f"{row.slope_size:.4f}", f"{row.curvature:.3g}", f"{row.change:.2%}", *found)
    console.print(table)
    if analysis.layers:
        layers = Table("layer", "cosine K+, K-", "|dK|/|K|", "cosine V+, V-", "|dV|/|V|")
        for number, layer in enumerate(analysis.layers):
            layers.add_row(
                str(number), f"{layer['key_cosine']:.8f}", f"{layer['key_difference']:.1e}",
                f"{layer['value_cosine']:.8f}", f"{layer['value_difference']:.1e}",
            )  # fmt: skip
        console.print(layers)
    console.print(
        f"recommended eps: {analysis.recommended_epsilon:g} (the exact slope moves least to its neighbours); "
        f"rounding error of the loss: about {analysis.rounding_error:.0e}",
        soft_wrap=True,
    )


def print_cosines(cosines: Mapping[int, float]) -> None:
    """By block, on standard output."""
    table = Table("block", "cosine with backpropagation")
    for block, cosine in cosines.items():
        table.add_row(str(block), f"{cosine:.3f}")
    plain_console().print(table)


def print_profile(regions: "list[Region]", num_steps: int) -> None:
    """Time per step by region, on standard output."""
    step = next(region for region in regions if region.name == "step")
    table = Table("region", "calls", "ms a step", "% of a step", "device, ms")
    for region in regions:
        table.add_row(
            region.name, str(region.calls), f"{1000 * region.cpu_s / num_steps:.2f}",
            f"{100 * region.cpu_s / step.cpu_s:.1f}", f"{1000 * region.device_s / num_steps:.2f}",
        )  # fmt: skip
    plain_console().print(table)


def plain_console(stderr: bool = False) -> RichConsole:
    """Prints texts as they are: brackets and colons in the name of a folder mean nothing."""
    return RichConsole(stderr=stderr, highlight=False, markup=False, emoji=False)


def _accuracy(metrics: dict[str, Any]) -> str:
    low, high = wilson_interval(metrics["accuracy"], metrics["num_examples"])
    return f"{metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
