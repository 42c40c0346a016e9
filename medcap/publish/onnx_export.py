"""Export to ONNX: vision encoder and text decoder with captions identical to the adapter's (extra `onnx`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import BlipForConditionalGeneration, BlipProcessor, GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from medcap.extras import install_command
from medcap.modeling.families.blip import Blip
from medcap.modeling.generation import decode_captions
from medcap.publish.merge import complete_release, merge
from medcap.publish.run_reader import ReleaseSource
from medcap.recipe import RecipeError

MODELS = ("encoder.onnx", "decoder.onnx")


def write_onnx(folder: Path, source: ReleaseSource) -> None:
    """Write encoder.onnx, decoder.onnx and the other files of a release into `folder`.

    This is a `Writer` for `build_release`.

    Raises:
        RecipeError: The family of the base has no export.
        ValueError: Beam search with onnxruntime generates another caption than the adapter, or the extra `onnx` is
            not installed.
    """
    card_data = source.card_data
    if not card_data.family.has_onnx:
        raise RecipeError(
            f"--onnx does not export {card_data.base_kind!r} models such as {card_data.base}: use --merge, which "
            "writes a full model for transformers"
        )
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ValueError(f"{missing[0]} is not installed: {install_command('onnx')}")
    model = merge(source.adapter)
    export(model, folder)
    complete_release(folder, source, "onnx", MODELS, partial(onnx_captions, folder, model))


class _Encoder(nn.Module):
    def __init__(self, model: BlipForConditionalGeneration) -> None:
        super().__init__()
        self.vision_encoder = model.vision_model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.vision_encoder(pixel_values=pixel_values).last_hidden_state


class _Decoder(nn.Module):
    def __init__(self, model: BlipForConditionalGeneration) -> None:
        super().__init__()
        self.decoder = model.text_decoder

    def forward(self, input_ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.decoder(input_ids=input_ids, encoder_hidden_states=features, use_cache=False).logits


def export(model: BlipForConditionalGeneration, folder: Path) -> None:
    """Write encoder.onnx (pixel_values to features) and decoder.onnx (input_ids, features to logits) into `folder`.

    Batch size and caption length are dynamic, the image size is fixed. There is no key/value cache: every step
    processes the full prefix.
    """
    size, max_length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    rows, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1, max=max_length)
    pixels, ids = torch.zeros(2, 3, size, size), torch.ones(2, 7, dtype=torch.int64)
    features = _Encoder(model)(pixels)
    _write(_Encoder(model), {"pixel_values": (pixels, {0: rows})}, "features", folder / MODELS[0])
    inputs = {"input_ids": (ids, {0: rows, 1: length}), "features": (features, {0: rows})}
    _write(_Decoder(model), inputs, "logits", folder / MODELS[1])


def _write(module: nn.Module, inputs: dict[str, tuple[torch.Tensor, dict[int, Any]]], output: str, path: Path) -> None:
    program = torch.onnx.export(
        module.eval(),
        tuple(tensor.detach() for tensor, _ in inputs.values()),
        dynamo=True,
        dynamic_shapes={name: free for name, (_, free) in inputs.items()},
        input_names=list(inputs),
        output_names=[output],
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph:  # metadata contains source paths of this machine
        node.metadata_props.clear()
        node.doc_string = None
    program.save(path, external_data=False)


def onnx_captions(
    folder: Path, model: BlipForConditionalGeneration, images: Sequence[Image.Image], prompt: str
) -> list[str]:
    """Caption with transformers' beam search over onnxruntime; the captions are not detokenized.

    Only `generate` of `model` is used, none of its weights.
    """
    from onnxruntime import InferenceSession

    encoder, decoder = (InferenceSession(folder / name) for name in MODELS)
    processor, generation_config = BlipProcessor.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    generation_config.use_cache = False

    def logits(input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> Any:
        inputs = {"input_ids": input_ids.numpy(), "features": encoder_hidden_states.numpy()}
        return CausalLMOutputWithCrossAttentions(logits=torch.from_numpy(decoder.run(None, inputs)[0]))

    text_decoder, start_ids = model.text_decoder, Blip(model, processor).start_ids(prompt, 1)
    text_decoder.forward = logits
    captions = []
    for image in images:
        pixels = processor(images=image, return_tensors="np").pixel_values
        features = torch.from_numpy(encoder.run(None, {"pixel_values": pixels})[0])
        ids = text_decoder.generate(
            input_ids=start_ids, encoder_hidden_states=features, generation_config=generation_config
        )
        captions += decode_captions(processor.tokenizer, ids[:, start_ids.shape[1] :], detokenize=False)
    return captions
