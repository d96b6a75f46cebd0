"""Residence: a request without a prompt loads a model, or unloads it."""

from __future__ import annotations

from gptoss_mlx.server.ollama.answer import Stopwatch, Tally
from gptoss_mlx.server.ollama.fields import AnswerFields
from gptoss_mlx.server.service import Service


async def without_prompt(
    service: Service, body: AnswerFields, watch: Stopwatch
) -> tuple[str, Tally]:
    """The model's name, and what is told of it. Raises Problem."""
    stays = body.stays
    entry = service.registry.find(body.wanted)
    if stays == 0:
        service.registry.expire(entry)
        counts: Tally = {"done_reason": "unload"}
    else:
        await service.load(entry.name, keep_alive=stays)
        watch.loaded()
        counts = {
            "done_reason": "load",
            "total_duration": watch.total,
            "load_duration": watch.load,
        }
    return body.wanted or entry.name, counts
