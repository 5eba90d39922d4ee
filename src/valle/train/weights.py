"""Models of the two kinds from folders: to look at, to speak with, or to begin a run with."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch import nn

from valle.errors import ValleError
from valle.model.ar import AR
from valle.model.nar import NAR
from valle.pretrained import part_of
from valle.train.config import Kind, TaskConfig

logger = logging.getLogger(__name__)


def model_values(kind: Kind, config: TaskConfig) -> dict[str, Any]:
    """The fields of the model that a configuration says, or where it says none those of the model it begins with."""
    if config.model or not config.init:
        return config.model
    return load_weights(kind, part_of(config.init, kind)).config_dict()


def load_weights(kind: Kind, folder: str | Path) -> AR | NAR:
    """A model from ``folder/{model.safetensors, config.json}``, in fp32 and evaluation mode.

    Raises:
        ValleError: a file is missing or does not fit.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise ValleError(f"{folder} is no {kind.upper()} model: model.safetensors and config.json are needed")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model: AR | NAR = AR.from_config(values) if kind == "ar" else NAR.from_config(values)
    try:
        model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    except RuntimeError as error:
        raise ValleError(f"the weights in {folder} do not fit its config.json: {error}") from error
    return model.eval()


def begin_with(model: nn.Module, kind: Kind, init: str) -> None:
    """Give a model the weights of another; modules that only one of them has (an option's) stay at random, or out.

    Raises:
        ValleError: it is of another form.
    """
    folder = part_of(init, kind)
    given = load_weights(kind, folder).state_dict()
    own = model.state_dict()
    shapes, needed = ({k: v.shape for k, v in weights.items()} for weights in (given, own))
    modules, own_modules = ({name.split(".")[0] for name in names} for names in (shapes, needed))
    new = {name for name in needed if name.split(".")[0] not in modules}
    left_out = {name for name in shapes if name.split(".")[0] not in own_modules}
    differing = sorted({k for k, _ in shapes.items() ^ needed.items()} - new - left_out)
    if differing:
        raise ValleError(
            f"the model {folder} has another form than [{kind}.model], {differing[0]} differs; use the same options, "
            "or begin without init"
        )
    if new:
        logger.info("%d tensors that %s does not have begin at random: %s ...", len(new), folder, min(new))
    if left_out:
        logger.info("%d tensors of %s are left out, as [%s.model] has no use for them: %s ...", len(left_out), folder,
                    kind, min(left_out))  # fmt: skip
    model.load_state_dict(own | {k: v for k, v in given.items() if k not in left_out})
