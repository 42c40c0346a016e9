"""BLIP's position embeddings at another image size."""

from __future__ import annotations

import torch
from torch import nn
from transformers import BlipForConditionalGeneration

from medcap.recipe import RecipeError


def resize_positions(model: BlipForConditionalGeneration, image_size: int) -> None:
    """Interpolate the vision encoder's position embeddings for images of `image_size` x `image_size` pixels.

    The result equals `interpolate_pos_encoding=True` at every call, so an adapter also fits the original base with
    that flag. With neither, BLIP silently uses the first rows of the larger grid, which are wrong positions.
    """
    embeddings = model.vision_model.embeddings
    patch_size, old = embeddings.patch_size, embeddings.position_embedding
    if image_size % patch_size:
        raise RecipeError(f"image_size is {image_size}; it must be a multiple of the patch size, {patch_size}")
    if image_size == model.config.vision_config.image_size:
        return
    patches = (image_size // patch_size) ** 2
    states = torch.empty(1, patches + 1, embeddings.embed_dim)  # only its shape is used
    with torch.no_grad():
        positions = embeddings.interpolate_pos_encoding(states, image_size, image_size).clone()
    embeddings.position_embedding = nn.Parameter(positions, requires_grad=old.requires_grad)
    embeddings.image_size = model.config.vision_config.image_size = image_size
    embeddings.num_patches, embeddings.num_positions = patches, patches + 1
