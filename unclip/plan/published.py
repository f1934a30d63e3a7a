"""What a CLIP of open_clip's registry is and costs, which its name alone says."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from unclip.clip import require_plain
from unclip.files import UnclipError


@dataclass(frozen=True)
class PublishedClip:
    """What a CLIP of open_clip's registry is, which its name alone says.

    Attributes:
        emb_width, text_width: E, and the width of the text states.
        image_flops, text_flops: operations of a picture, and of a caption of `context_length` tokens; a product with a sum is two.
    """

    emb_width: int
    text_width: int
    context_length: int
    parameters: int
    image_flops: int
    text_flops: int


def published_clip(model_name: str) -> PublishedClip:
    """Sizes and operations of a model of open_clip, from its network without any weights.

    Raises:
        UnclipError: there is none of this name, or it is a kind of CLIP without a plain text tower.
    """
    import open_clip
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config = open_clip.get_model_config(model_name)
    if config is None:
        raise UnclipError(f"expected the name of a model of open_clip, such as ViT-L-14, got {model_name!r}")
    if "hf_model_name" in config["text_cfg"] or "multimodal_cfg" in config:
        raise UnclipError(f"expected a CLIP with a causal text tower that ends in the end-of-text token, got {model_name}")
    with torch.device("meta"):  # shapes alone: neither memory nor time
        quick = config.get("quick_gelu", False)
        model = CLIP(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"]), quick_gelu=quick)
        require_plain(model, model_name)
        side = model.visual.image_size
        height, width = side if isinstance(side, tuple) else (side, side)
        with FlopCounterMode(display=False) as of_images:
            model.encode_image(torch.empty(1, 3, height, width))
        with FlopCounterMode(display=False) as of_texts:
            model.encode_text(torch.empty(1, model.context_length, dtype=torch.long))
    parameters = sum(value.numel() for value in model.parameters())
    image_flops, text_flops = of_images.get_total_flops(), of_texts.get_total_flops()
    return PublishedClip(config["embed_dim"], config["text_cfg"]["width"], model.context_length, parameters, image_flops, text_flops)
