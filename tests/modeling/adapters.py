"""Helpers for tests of adapters on the tiny base."""

import torch

LAYERS = 2  # of the tiny base's text decoder, and of its vision encoder


def adapted_layers(model):
    """Return the names, as in the base, of the layers that have an adapter."""
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in model.named_modules()
        if name.endswith(".lora_A")
    }


def randomized(model):
    """Change the adapter as training would; a new one adds zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model.eval()


@torch.no_grad()
def logits(model):
    generator = torch.Generator().manual_seed(0)
    pixels, ids = torch.randn(2, 3, 32, 32, generator=generator), torch.tensor([[192, 20, 30, 40], [192, 7, 8, 3]])
    return model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
