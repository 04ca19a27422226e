"""The patches as data, and that none of them changes what the model computes."""

from __future__ import annotations

from itertools import product

import pytest

from tpudeploy.contracts.decoder import AttentionForm, DecoderConfig, MaskForm, RopeLayout
from tpudeploy.contracts.patch import apply_patches, revert_patch
from tpudeploy.errors import PluginError, SequenceTooLongError
from tpudeploy_chatglm3.adapter import ChatGLM3

ADAPTER = ChatGLM3()
CONFIG = DecoderConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_size=48,
    vocab_size=64,
    seq_length=128,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rotary_dim=8,
)
FORM_NAMES = ("additive-mask", "explicit-attention", "half-split-rope")


def test_names_are_unique_and_every_patch_explains_itself() -> None:
    patches = ADAPTER.patches(CONFIG, seq_length=64)
    assert [patch.name for patch in patches] == ["static-seq-length", *FORM_NAMES]
    for patch in patches:
        assert all(len(text) > 20 for text in (patch.reason, patch.changes, patch.undo)), patch.name


@pytest.mark.parametrize("config", [CONFIG, *(variant.config for variant in ADAPTER.variants())])
@pytest.mark.parametrize("seq_length", [1, 64, None])
def test_apply_then_revert_gives_the_same_config(config: DecoderConfig, seq_length: int | None) -> None:
    patches = ADAPTER.patches(config, seq_length=seq_length or config.seq_length)
    patched = apply_patches(config, patches)
    assert patched.seq_length == (seq_length or config.seq_length)
    assert patched.form.mask is MaskForm.ADDITIVE
    assert patched.form.attention is AttentionForm.MATMUL
    assert patched.form.rope_layout is RopeLayout.HALF_SPLIT
    for patch in reversed(patches):
        patched = revert_patch(patched, patch)
    assert patched == config


def test_every_patch_is_independent_of_the_others() -> None:
    patches = ADAPTER.patches(CONFIG, seq_length=64)
    assert apply_patches(CONFIG, reversed(patches)) == apply_patches(CONFIG, patches)


def test_patching_twice_is_refused() -> None:
    patches = ADAPTER.patches(CONFIG, seq_length=64)[1:]
    with pytest.raises(PluginError, match="additive-mask"):
        apply_patches(apply_patches(CONFIG, patches), patches)


def test_more_tokens_than_the_model_was_made_for() -> None:
    with pytest.raises(SequenceTooLongError, match=r"129.*128"):
        ADAPTER.patches(CONFIG, seq_length=129)


pytest.importorskip("torch", reason="needs the export extra")

import torch  # noqa: E402 - may be absent

from tpudeploy.graph.decoder import Decoder  # noqa: E402 - needs torch


def half_split_order(config: DecoderConfig) -> list[int]:
    rotary = range(config.rotary_dim)
    return [*rotary[0::2], *rotary[1::2], *range(config.rotary_dim, config.head_dim)]


def permuted(state: dict[str, torch.Tensor], config: DecoderConfig) -> dict[str, torch.Tensor]:
    """The weights with the rotary rows of q and k, and their biases, in half-split order."""
    order = half_split_order(config)

    def reorder(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if ".attention.q." not in name and ".attention.k." not in name:
            return tensor
        heads = tensor.reshape(-1, config.head_dim, *tensor.shape[1:])  # (heads, head_dim[, hidden])
        return heads[:, order].reshape(tensor.shape)

    return {name: reorder(name, tensor) for name, tensor in state.items()}


def reference() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Random weights (biases included), a prompt, and the published form's logits."""
    generator = torch.Generator().manual_seed(0)
    decoder = Decoder(CONFIG).eval()
    state = {name: torch.randn(value.shape, generator=generator) * 0.3 for name, value in decoder.state_dict().items()}
    decoder.load_state_dict(state)
    ids = torch.randint(0, CONFIG.vocab_size, (1, 48), generator=generator)
    with torch.no_grad():
        return state, ids, decoder(ids)


@pytest.mark.parametrize("chosen", list(product([False, True], repeat=3)), ids=str)
def test_logits_are_equal_in_every_combination(chosen: tuple[bool, ...]) -> None:
    state, ids, expected = reference()
    names = {name for name, is_chosen in zip(FORM_NAMES, chosen, strict=True) if is_chosen}
    patches = [patch for patch in ADAPTER.patches(CONFIG, seq_length=64) if patch.name in names]
    config = apply_patches(CONFIG, patches)
    decoder = Decoder(config).eval()
    decoder.load_state_dict(permuted(state, config) if "half-split-rope" in names else state)
    with torch.no_grad():
        torch.testing.assert_close(decoder(ids), expected, atol=5e-5, rtol=1e-5)


def test_a_shorter_static_length_changes_nothing_within_it() -> None:
    state, ids, expected = reference()
    decoder = Decoder(apply_patches(CONFIG, ADAPTER.patches(CONFIG, seq_length=48)[:1])).eval()
    decoder.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(decoder(ids), expected)


def test_half_split_without_the_permutation_is_another_model() -> None:
    state, ids, expected = reference()
    decoder = Decoder(apply_patches(CONFIG, ADAPTER.patches(CONFIG, seq_length=64))).eval()
    decoder.load_state_dict(state)
    with torch.no_grad():
        assert (decoder(ids) - expected).abs().max() > 0.01
