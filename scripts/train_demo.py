"""Train the demo model ``chatglm3:demo`` and write its checkpoint, or check the one that is there.

Usage, from the repository's root, with the package's ``export`` extra installed::

    python scripts/train_demo.py           # train, write the checkpoint, check it
    python scripts/train_demo.py --check   # only check the checkpoint

The same versions of torch and sentencepiece on the same kind of processor give the same checkpoint.
The dialogues are in ``plugins/chatglm3/tpudeploy_chatglm3/demo/dialogues.json``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from demo_training.checkpoint import load_weights, save_checkpoint
from demo_training.dialogues import CHECKPOINT_FOLDER, load_dialogues, message_text
from demo_training.evaluation import Outcome, evaluate, modes
from demo_training.first_weights import new_model
from demo_training.network import CONFIG
from demo_training.tokens import DemoTokenizer, train_tokenizer
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
    parser.add_argument("--check", action="store_true", help="check the checkpoint that is there; train nothing")
    parser.add_argument("--folder", type=Path, default=CHECKPOINT_FOLDER, help="where the checkpoint lies")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="number of training steps")
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.check:
        _train(options.folder, Recipe(steps=options.steps))
    return 0 if _check(options.folder) else 1


def _train(folder: Path, recipe: Recipe) -> None:
    began = time.monotonic()
    dialogues = load_dialogues()
    variations = Variations(dialogues, recipe.seed)
    written = [text for item in dialogues for message in item.messages for text in (message_text(message),)]
    pieces = train_tokenizer([*written, *variations.texts()])
    model = new_model(CONFIG, recipe.seed)
    train(model, DemoTokenizer(pieces), variations, recipe)
    save_checkpoint(folder, model, CONFIG, pieces)
    print(f"trained in {time.monotonic() - began:.0f} s: {folder}")


def _check(folder: Path) -> bool:
    """Print a table of every mode, and say whether all dialogues passed in all of them."""
    model = Decoder(CONFIG)
    model.load_state_dict(load_weights(folder / "model.safetensors", CONFIG))
    tokenizer = DemoTokenizer((folder / "tokenizer.model").read_bytes())
    dialogues = load_dialogues()
    variations = Variations(dialogues, seed=0)
    phrased = [(item.question, item.messages) for item in variations.phrased()]
    drawn = [(str(index), variations.draw()) for index in range(DRAWN)]
    passed = True
    for mode in modes():
        shown = evaluate(model, tokenizer, [(item.name, item.messages) for item in dialogues], mode)
        others = [evaluate(model, tokenizer, group, mode) for group in (phrased, drawn)]
        print(_row(shown, *others), flush=True)
        passed &= shown.margin >= SMALLEST_MARGIN
    print("all dialogues are answered" if passed else "some dialogues FAIL")
    return passed


def _row(shown: Outcome, phrased: Outcome, drawn: Outcome) -> str:
    counts = [f"{item.total - len(item.wrong)}/{item.total}" for item in (shown, phrased, drawn)]
    row = f"{shown.mode.name:27} dialogues {counts[0]}, least margin {shown.margin:5.2f} ({shown.weakest})"
    row += f"; phrasings {counts[1]}; drawn {counts[2]}"
    return row + (f"; wrong: {', '.join(shown.wrong)}" if shown.wrong else "")


if __name__ == "__main__":
    sys.exit(main())
