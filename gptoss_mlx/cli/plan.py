"""The command `gptoss-mlx plan`: what a model would take, and what fits which machine.

It needs a config.json only, and has those of the released models: nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptoss_mlx.backends.backend import choose_backend, machine_of
from gptoss_mlx.cli.exits import Command
from gptoss_mlx.cli.options import (
    BYTES,
    CONTEXT_SETTINGS,
    MACHINE,
    TOKENS,
    backend_options,
    cache_option,
    model_option,
)
from gptoss_mlx.cli.terminal import harmless, show
from gptoss_mlx.errors import (
    ConfigError,
    ContextError,
    DeviceError,
    MemoryBudgetError,
    ModelNotFoundError,
)
from gptoss_mlx.files.jsonfile import read_json, shown
from gptoss_mlx.models.hub import local_folder
from gptoss_mlx.models.names import full_name
from gptoss_mlx.plan.memory import MOST_ROWS, Plan, make_plan, wired_bytes
from gptoss_mlx.settings import Settings
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.recipe import RECIPES, quantization
from gptoss_mlx.spec.released import CONFIGS
from gptoss_mlx.system.machine import CARDS, MACHINES, Machine
from gptoss_mlx.system.units import show_bytes, show_tokens

if TYPE_CHECKING:
    from rich.table import Table

UNCONVERTED = "bf16"
CONVERTED = {"mlx": "mixed", "torch": "8"}
"""The recipe shown for every released model beside UNCONVERTED: the converter's default; for
PyTorch, which keeps no fewer than 8 bits, the one that saves the most."""


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@model_option('A folder, a released model\'s id, or "tiny".')
@click.option("--memory", type=BYTES, help="Bytes it must stay within, such as 10GiB.")
@click.option("--context", type=TOKENS, help="Most tokens, prompt and answer, such as 32k.")
@click.option(
    "--machine", type=MACHINE, help='Instead of this one: "16GB Mac", "24GB card", "RTX 4090".'
)
@backend_options
@click.option("--parallel", type=click.IntRange(1, MOST_ROWS), help="Sequences decoded at a time.")
@click.option("--bits", type=click.Choice(list(RECIPES)), help="As if converted with these.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Compute precision.")
@click.option("--embedding", type=click.Choice(["file", "resident"]), help="Where its table is.")
@click.option("--kv-bits", type=click.Choice(["8"]), help="Quantized keys and values.")
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(
    model: str,
    memory: int | None,
    context: int | None,
    machine: Machine | None,
    backend: str | None,
    device: str | None,
    parallel: int | None,
    bits: str | None,
    dtype: str | None,
    embedding: str | None,
    kv_bits: str | None,
    cache: int | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Show what a model takes in memory, and what fits which machine, before it is loaded."""
    if machine is None:
        machine = machine_of(choose_backend(backend, device))
    elif backend or device:
        raise click.UsageError("--machine says what computes: leave --backend and --device out")
    settings = Settings(
        dtype=dtype,
        context=context,
        embedding=embedding,
        kv_bits=int(kv_bits) if kv_bits else None,
        parallel=parallel,
        cache=cache,
    )
    if memory is not None and machine.memory is not None and memory > machine.memory:
        # A plan can be for a machine like this one with more memory.
        machine = replace(machine, name=f"a machine with {show_bytes(memory)}", memory=None)
    config = config_of(model, bits)
    plan = make_plan(config, machine, replace(settings, memory=memory))
    fastest = most_tokens(config, plan, machine)
    fits = list(what_fits(MACHINES.values(), bits or CONVERTED["mlx"], settings))
    cards = list(what_fits(CARDS.values(), bits or CONVERTED["torch"], settings))
    if as_json:
        value = {
            "model": model,
            "bits": bits,
            "machine": asdict(machine),
            "plan": plan_object(plan),
            "most_tokens_per_second": fastest,
            "fits": fits,
            "cards": cards,
        }
        click.echo(json.dumps(value))
        return
    title = f"{model} on {machine.name}"
    show(plan_table(plan, title))
    if fastest is not None and machine.bandwidth is not None:
        click.echo(
            f"at most {fastest:.0f} tokens a second: what one reads of memory, divided into the"
            f" {machine.bandwidth / 1e9:.0f} GB/s that Apple states; not measured"
        )
    show(_fits_table(fits, "Mac"), _fits_table(cards, "card"))


def most_tokens(config: ModelConfig, plan: Plan, machine: Machine) -> float | None:
    """The most tokens a second that the memory's stated bandwidth allows, with a short context.

    None where the bandwidth is not known or experts come from the disk.
    """
    if machine.bandwidth is None or not plan.resident:
        return None
    experts = plan.of("experts") * config.num_experts_per_tok // plan.experts
    return machine.bandwidth / (plan.of("weights") + experts)


def config_of(model: str, bits: str | None = None) -> ModelConfig:
    """The config of a local folder, or of a released model that need not be here.

    bits: plan as if the model were converted with this recipe.
    Raises ModelNotFoundError, or ConfigError for a folder that is converted already.
    """
    model = full_name(model)
    folder = local_folder(model)
    path = CONFIGS.get(model) if folder is None else folder / "config.json"
    if path is None:
        raise ModelNotFoundError(
            f"{shown(model)}: is not on this machine; before a download only"
            f" {' and '.join(CONFIGS)} can be planned"
        )
    if bits is None:
        return ModelConfig.from_file(path)
    if ModelConfig.from_file(path).quantization is not None:
        raise ConfigError(f"{path}: is converted already; plan it without --bits")
    return _converted(path, bits)


def what_fits(
    machines: Iterable[Machine], bits: str, settings: Settings
) -> Iterator[dict[str, Any]]:
    """A row for every machine and released model, unconverted and converted: choices, or why none.

    settings: of each plan.
    """
    configs = {
        (model, recipe): _converted(path, recipe)
        for model, path in CONFIGS.items()
        for recipe in dict.fromkeys((UNCONVERTED, bits))
    }
    for machine in machines:
        for (model, recipe), config in configs.items():
            row: dict[str, Any] = {"machine": machine.name, "model": model, "bits": recipe}
            try:
                plan = make_plan(config, machine, settings)
            except (MemoryBudgetError, ContextError, DeviceError) as error:
                yield {**row, "fits": False, "why": str(error)}
                continue
            yield {
                **row,
                "fits": True,
                "slots": plan.slots,
                "experts": plan.experts,
                "context": plan.context,
                "rows": plan.rows,
                "bytes": plan.total,
            }


def _converted(path: Path, recipe: str) -> ModelConfig:
    """A released config as a recipe would convert it."""
    values = read_json(path)
    section = quantization(RECIPES[recipe], ModelConfig.from_values(values, path))
    return ModelConfig.from_values({**values, "quantization": section}, path)


def plan_object(plan: Plan) -> dict[str, Any]:
    """A plan's choices and buffers for JSON; sizes in bytes."""
    value = asdict(plan)
    value["buffers"] = {buffer.name: buffer.nbytes for buffer in plan.buffers}
    value["host"] = {buffer.name: buffer.nbytes for buffer in plan.host}
    return {**value, "total": plan.total, "left": plan.left, "wired": wired_bytes(plan)}


def plan_table(plan: Plan, title: str) -> Table:
    """The buffers, their sum, and what is left of the budget."""
    from rich.table import Table
    from rich.text import Text

    notes = {
        "experts": f"{plan.slots} of {plan.experts} in each layer",
        "embedding": "" if plan.embedding == "resident" else "read from the file",
        "keys and values": f"{_sequences(plan)}{', 8 bits' if plan.kv_bits else ''}",
        "prefix store": "at most, for what prompts have in common" if plan.store else "",
        "scratch": f"{plan.chunk} tokens of a prompt at a time",
    }
    if plan.host:  # on a card
        notes |= dict.fromkeys(("CUDA graphs", "CUDA context", "headroom"), "an estimate")
    table = Table(title=Text(harmless(f"{title}, {plan.dtype}"), style="table.title"))
    table.add_column("buffer")
    table.add_column("bytes", justify="right")
    table.add_column("")
    for buffer in plan.buffers:
        table.add_row(buffer.name, show_bytes(buffer.nbytes), notes.get(buffer.name, ""))
    table.add_section()
    table.add_row("in all", show_bytes(plan.total))
    if plan.budget is not None and plan.left is not None:
        table.add_row("left", show_bytes(plan.left), f"of {show_bytes(plan.budget)}")
    if plan.host:
        table.add_section()
    for buffer in plan.host:
        estimate = ", an estimate" if buffer.name == "runtime" else ""
        table.add_row(buffer.name, show_bytes(buffer.nbytes), f"beside it, of the host{estimate}")
    return table


def _sequences(plan: Plan) -> str:
    return f"{plan.rows} x {plan.context} tokens" if plan.rows > 1 else f"{plan.context} tokens"


def _fits_table(fits: Sequence[Mapping[str, Any]], kind: str) -> Table:
    from rich.table import Table

    table = Table(title=f"experts in memory, and the context, by {kind}")
    table.add_column("")
    columns = list(dict.fromkeys((row["model"], row["bits"]) for row in fits))
    for model, bits in columns:
        table.add_column(f"{model.removeprefix('openai/gpt-oss-')}, {bits}", justify="right")
    cells = {(row["machine"], row["model"], row["bits"]): _cell(row) for row in fits}
    for name in dict.fromkeys(row["machine"] for row in fits):
        table.add_row(name, *(cells[name, model, bits] for model, bits in columns))
    return table


def _cell(row: Mapping[str, Any]) -> str:
    if not row["fits"]:
        return "-"
    share = "all" if row["slots"] == row["experts"] else f"{row['slots']} of {row['experts']}"
    several = f"{row['rows']} x " if row["rows"] > 1 else ""
    return f"{share}, {several}{show_tokens(row['context'])}"


if __name__ == "__main__":
    main()
