"""CLIP through open_clip: exact trimming, folders that open_clip opens, and checkpoints made on the spot."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from unclip.clip import (
    CONFIG,
    WEIGHTS,
    TowerConfig,
    contrastive_loss,
    encode_token_ids,
    import_clip,
    load_clip,
    make_clip,
    make_tokenizer,
    preprocess_of,
    save_clip,
    training_preprocess,
)
from unclip.files import UnclipError

TOWER = TowerConfig(emb_width=16, image_size=16, patch_size=8, vision_width=32, vision_layers=1, text_width=32, text_layers=2, head_width=16, context_length=12)
CAPTIONS = ["a dog", "a large red star above a small blue ring", "", "!~ yes"]


def saved(folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    save_clip(folder, TOWER, make_clip(TOWER).state_dict(), origin="trained here")
    return folder


def pictures(num: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(num)]


def test_trimming_to_the_longest_caption_is_exact(tmp_path: Path) -> None:
    clip = load_clip(saved(tmp_path / "own"))
    text = clip.encode_texts(CAPTIONS)
    torch.testing.assert_close(text.text_emb, clip.model.encode_text(clip.tokenize(CAPTIONS)), atol=1e-5, rtol=1e-5)
    assert text.text_tokens.shape[1] < TOWER.context_length
    for row, caption in enumerate(CAPTIONS):
        alone = clip.encode_texts([caption])
        length = int(text.text_mask[row].sum())
        torch.testing.assert_close(text.text_tokens[row, :length], alone.text_tokens[0], atol=1e-5, rtol=1e-5)


def test_the_mask_ends_with_the_end_of_text_token_not_with_the_first_zero(tmp_path: Path) -> None:
    """ "!" has the id 0, which is also the padding's."""
    clip = load_clip(saved(tmp_path / "own"))
    text = clip.encode_texts(["!~ yes"])
    ids = text.token_ids[0].tolist()
    assert 0 in ids[1:-1]
    assert ids[-1] == 49407
    assert text.text_mask.all()


def test_text_states_are_those_of_open_clip() -> None:
    torch.manual_seed(0)
    model = make_clip(TOWER).eval()
    ids = make_tokenizer(TOWER)(CAPTIONS)
    theirs = model.forward_intermediates(text=ids, text_indices=1, normalize=False, normalize_intermediates=True)
    ours = encode_token_ids(model, ids)
    torch.testing.assert_close(ours.text_emb, theirs["text_features"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.text_tokens, theirs["text_intermediates"][-1][:, : ours.text_tokens.shape[1]], atol=1e-5, rtol=1e-5)


def test_open_clip_opens_the_folder_and_agrees(tmp_path: Path) -> None:
    folder = saved(tmp_path / "own")
    ours = load_clip(folder)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pixels = torch.stack([preprocess(picture) for picture in pictures(3)])
    torch.testing.assert_close(ours.encode_pictures(pictures(3)), theirs.eval().encode_image(pixels), atol=1e-5, rtol=1e-5)


def test_preprocessing_is_the_same_bit_for_bit_wherever_it_comes_from(tmp_path: Path) -> None:
    folder = saved(tmp_path / "own")
    for picture in pictures(4):
        expected = load_clip(folder).preprocess(picture)
        assert torch.equal(preprocess_of(folder)(picture), expected)
        assert torch.equal(training_preprocess(TOWER)(picture), expected)


def test_embeddings_are_not_normalised(tmp_path: Path) -> None:
    clip = load_clip(saved(tmp_path / "own"))
    norms = clip.encode_pictures(pictures(5)).norm(dim=1)
    assert norms.std() > 1e-4


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_local_checkpoint_of_a_published_model_is_imported(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt")
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), file)
    else:
        save_file(model.state_dict(), file)
    folder = tmp_path / "imported"
    folder.mkdir()
    import_clip(folder, "ViT-S-32-alt", str(file))
    clip = load_clip(folder)
    assert (clip.emb_width, clip.origin) == (256, f"ViT-S-32-alt {file}")
    torch.testing.assert_close(
        clip.encode_texts(["a dog"]).text_emb, model.eval().encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(["a dog"])), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-33", "openai", "must be a model of open_clip"),
        ("ViT-B-32", "laion5b", "must be a checkpoint file or one of .*laion2b_s34b_b79k"),
        ("ViT-B-32", "/nowhere/weights.pt", "but there is none"),
    ],
)
def test_what_can_not_be_had_is_one_line(tmp_path: Path, model: str, pretrained: str, message: str) -> None:
    with pytest.raises(UnclipError, match=message):
        import_clip(tmp_path, model, pretrained)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("this must never be printed",))

    file = tmp_path / "evil.pt"
    torch.save({"weights": Evil()}, file)
    with pytest.raises(UnclipError, match="could not load"):
        import_clip(tmp_path, "ViT-S-32-alt", str(file))


def test_a_damaged_folder_is_one_line(tmp_path: Path) -> None:
    folder = saved(tmp_path / "own")
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UnclipError, match="does not load"):
        load_clip(folder)
    weights.unlink()
    with pytest.raises(UnclipError, match="run `unclip clip`"):
        load_clip(folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(UnclipError, match="is not JSON"):
        load_clip(folder)


def test_the_loss_falls_when_captions_fit_their_pictures() -> None:
    torch.manual_seed(0)
    model = make_clip(TOWER)
    pixels, ids = torch.randn(8, 3, 16, 16), make_tokenizer(TOWER)([f"number {n}" for n in range(8)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = contrastive_loss(model, pixels, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_the_loss_is_the_symmetric_cross_entropy_of_scaled_cosines() -> None:
    torch.manual_seed(0)
    model = make_clip(TOWER)
    pixels, ids = torch.randn(6, 3, 16, 16), make_tokenizer(TOWER)([f"number {n}" for n in range(6)])
    images, texts = (F.normalize(emb, dim=-1) for emb in (model.encode_image(pixels), model.encode_text(ids)))
    logits = model.logit_scale.exp() * images @ texts.T
    expected = -(logits.log_softmax(0).diagonal().mean() + logits.log_softmax(1).diagonal().mean()) / 2
    torch.testing.assert_close(contrastive_loss(model, pixels, ids), expected)
