"""Train a demo model, ``chatglm3:demo`` or ``glm4:demo``, and write its checkpoint, or check the one that is there.

Usage, from the repository's root, with the package's ``export`` extra installed::

    python scripts/train_demo.py                 # train ChatGLM3's, write the checkpoint, check it
    python scripts/train_demo.py --family glm4   # GLM-4's
    python scripts/train_demo.py --check         # only check the checkpoint

The committed checkpoints were trained by these commands::

    python scripts/train_demo.py && python scripts/train_demo.py --resume 700
    python scripts/train_demo.py --family glm4

The same versions of torch (and, for ChatGLM3, sentencepiece) on the same kind of processor give the same checkpoint.
The dialogues are in ``plugins/chatglm3/tpudeploy_chatglm3/demo/dialogues.json``; those of another family are adapted
from them, and written beside its checkpoint.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from demo_training.checkpoint import load_weights, save_checkpoint, save_files
from demo_training.dialogues import dialogues_of, dialogues_text, read_dialogues
from demo_training.evaluation import Outcome, evaluate, modes
from demo_training.families import FAMILIES
from demo_training.family import Family
from demo_training.first_weights import new_model
from demo_training.samples import Sampler
from demo_training.training import Recipe, train
from demo_training.variations import Variations
from tpudeploy.graph.decoder import Decoder

SMALLEST_MARGIN = 1.0
"""Lead in logits that every token of every dialogue must have in every mode."""
DRAWN = 200
"""Random conversations around the dialogues that the check reports on as well, without asking for all of them."""


def main() -> int:
    """Train or check; return the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="chatglm3", help="whose demo")
    parser.add_argument("--check", action="store_true", help="check the checkpoint that is there; train nothing")
    parser.add_argument("--folder", type=Path, help="where dialogues.json and the checkpoint lie; default: the plugin")
    parser.add_argument("--steps", type=int, help="number of training steps; default: the family's")
    parser.add_argument("--resume", type=int, metavar="STEPS", help="train the checkpoint that is there further")
    parser.add_argument("--threads", type=int, default=1, help="processor cores to use; the checkpoint depends on it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    family = FAMILIES[options.family]
    folder = options.folder or family.folder
    if options.resume:
        _resume(family, folder, Recipe(steps=2 * options.resume, first=options.resume))
    elif not options.check:
        _train(family, folder, Recipe(steps=options.steps or family.steps))
    return 0 if _check(family, folder) else 1


def _train(family: Family, folder: Path, recipe: Recipe) -> None:
    began = time.monotonic()
    dialogues = dialogues_of(family)
    save_files(folder, {"dialogues.json": dialogues_text(dialogues).encode()})
    variations = Variations(dialogues, family.reword, recipe.seed)
    checkpoint = folder / "checkpoint"
    save_files(checkpoint, family.tokenizer_files([item.messages for item in dialogues], list(variations.texts())))
    model = new_model(family.config, recipe.seed)
    train(model, Sampler(family, checkpoint), variations, recipe)
    save_checkpoint(checkpoint, model, family)
    print(f"trained in {time.monotonic() - began:.0f} s: {checkpoint}")


def _resume(family: Family, folder: Path, recipe: Recipe) -> None:
    """Train as in the second half of a schedule: quantized at once, and for the full margin."""
    checkpoint = folder / "checkpoint"
    model = _load(family, checkpoint)
    variations = Variations(dialogues_of(family), family.reword, recipe.seed + recipe.first)
    train(model, Sampler(family, checkpoint), variations, recipe)
    save_checkpoint(checkpoint, model, family)


def _load(family: Family, checkpoint: Path) -> Decoder:
    model = Decoder(family.config)
    model.load_state_dict(load_weights(checkpoint / "model.safetensors", family.config))
    return model


def _check(family: Family, folder: Path) -> bool:
    """Print a table of every mode, and say whether all dialogues passed in all of them."""
    checkpoint = folder / "checkpoint"
    model = _load(family, checkpoint)
    sampler = Sampler(family, checkpoint)
    dialogues = dialogues_of(family)
    variations = Variations(dialogues, family.reword, seed=0)
    phrased = [(item.question, item.messages) for item in variations.phrased()]
    drawn = [(str(index), variations.draw()) for index in range(DRAWN)]
    passed = True
    for mode in modes():
        shown = evaluate(model, sampler, [(item.name, item.messages) for item in dialogues], mode)
        others = [evaluate(model, sampler, group, mode) for group in (phrased, drawn)]
        print(_row(shown, *others), flush=True)
        passed &= shown.margin >= SMALLEST_MARGIN
    print("all dialogues are answered" if passed else "some dialogues FAIL")
    in_step = read_dialogues(folder / "dialogues.json") == dialogues
    if not in_step:
        print(f"{folder / 'dialogues.json'} is not what the shared dialogues say")
    return passed and in_step


def _row(shown: Outcome, phrased: Outcome, drawn: Outcome) -> str:
    counts = [f"{item.total - len(item.wrong)}/{item.total}" for item in (shown, phrased, drawn)]
    row = f"{shown.mode.name:27} dialogues {counts[0]}, least margin {shown.margin:5.2f} ({shown.weakest})"
    row += f"; phrasings {counts[1]}; drawn {counts[2]}"
    return row + (f"; wrong: {', '.join(shown.wrong)}" if shown.wrong else "")


if __name__ == "__main__":
    sys.exit(main())
