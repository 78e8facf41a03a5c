"""Whether an OpenAI-compatible endpoint will do, found out before the first clip: a wrong key, name or setting would
else be every clip's reject."""

from __future__ import annotations

from pipeline.models.openai.endpoint import Endpoint, Failed
from pipeline.models.openai.faults import Fault, turned_down, unknown_model
from pipeline.models.openai.options import SEEN_UNASKED, Options
from pipeline.models.openai.requests import trial_request
from pipeline.stage import UserError

TRIES = 3
"""Tries of a request, when somebody sits and waits."""


async def check(endpoint: Endpoint, model: str, options: Options) -> None:
    """See that the server is there, has the model, and answers what will be asked. Raises UserError."""
    try:
        served = await endpoint.served()
        if served and model not in served and options.must_be_listed:
            raise unknown_model("it is not on its list", served, model, options)
        await endpoint.send(trial_request(options), TRIES)
    except Failed as failed:
        raise _start_error(failed.fault, model, options) from None
    if options.frames_as == "video" and options.max_frames > SEEN_UNASKED:
        await _check_frames(endpoint, options)


async def _check_frames(endpoint: Endpoint, options: Options) -> None:
    """See that the server looks at as many frames of a video as clips may have: vLLM's leaves some out and does not say
    so, but counts fewer tokens. Raises UserError."""
    most = options.max_frames
    try:
        fewer, all_of_them = [
            (await endpoint.send(trial_request(options, count), TRIES)).prompt_tokens
            for count in (most - options.frame_multiple, most)
        ]
    except Failed:  # too long for it even so small, or not there any more: the clips will tell
        return
    if 0 < all_of_them <= fewer:
        raise UserError(
            f"the endpoint {options.base_url} does not look at all frames of a video of {most}: start vLLM's server "
            """with --media-io-kwargs '{"video": {"num_frames": -1}}', or lower the describer's options.max_frames"""
        )


def _start_error(fault: Fault, model: str, options: Options) -> UserError:
    """What it means that the server does not answer the first request."""
    where = f"the endpoint {options.base_url}"
    if fault.kind == "everyone":
        return turned_down(fault, model, options)
    if fault.no_answer:
        return UserError(f"{where}: {fault.words}. Start the server, or set the describer's options.base_url")
    if fault.kind == "passing":
        return UserError(f"{where} does not answer model {model} ({fault.words}). Try again when it does")
    return UserError(
        f"{where} takes no request of this form for model {model} ({fault.words}). The describer's options that change "
        "the form: frames_as, media_io_kwargs, json_schema, limit_field, temperature, top_p, seed, extra_body"
    )
