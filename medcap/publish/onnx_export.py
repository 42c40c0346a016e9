"""FeatureEncoder and decoder as ONNX, proven to say what the adapter says: needs the extra `onnx`."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import BlipForConditionalGeneration, BlipProcessor, GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from medcap.modeling.blip import decode_captions, prompt_ids
from medcap.publish.card_data import CardData
from medcap.publish.merge import check_captions, merge, some_pictures
from medcap.publish.release import RELEASE_FILES, check_files, write_card, write_files
from medcap.publish.run_paths import WEIGHTS

MODELS = ("encoder.onnx", "decoder.onnx")
ONNX_FILES = (RELEASE_FILES - {WEIGHTS, "adapter_config.json"}) | set(MODELS)
NEEDED = (*MODELS, "generation_config.json", "processor_config.json", "README.md")


def write_onnx(folder: Path, run: Path, evaluation: Path | None, facts: CardData, places: Collection[str]) -> None:
    """Write the run's model into `folder`: encoder.onnx, decoder.onnx, and what goes with an adapter.

    Beam search over the two, run by onnxruntime, must give the adapter's captions of a few pictures word for word.
    For `build_release`; ValueError also for captions that differ, and where the extra is not installed.
    """
    if lacking := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ValueError(f"{lacking[0]} is not installed: pip install 'medcap[onnx]'")
    adapter, facts = run / "adapter", replace(facts, form="onnx")
    model = merge(adapter)
    export(model, folder)
    write_files(folder, adapter, evaluation, facts)
    pictures, source = some_pictures(adapter)
    said = onnx_captions(folder, model, pictures, facts.recipe.get("prompt", ""))
    check_captions("the ONNX model", said, adapter, pictures)
    sys.stderr.write(f"the captions of {len(pictures)} pictures ({source}) are the adapter's, word for word\n")
    write_card(folder, facts)
    check_files(folder, NEEDED, ONNX_FILES, places)


class _Encoder(nn.Module):
    def __init__(self, model: BlipForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.vision_model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values=pixel_values).last_hidden_state


class _Decoder(nn.Module):
    def __init__(self, model: BlipForConditionalGeneration) -> None:
        super().__init__()
        self.decoder = model.text_decoder

    def forward(self, input_ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.decoder(input_ids=input_ids, encoder_hidden_states=features, use_cache=False).logits


def export(model: BlipForConditionalGeneration, folder: Path) -> None:
    """Write encoder.onnx (pixel_values to features) and decoder.onnx (input_ids, features to logits) into `folder`.

    Batch and length of a caption are free, the size of the image is not. No keys and values are kept: every step reads
    the whole caption again.
    """
    size, longest = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    rows, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1, max=longest)
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
    for node in program.model.graph:  # each tells in which file of this machine its line of code stands
        node.metadata_props.clear()
        node.doc_string = None
    program.save(path, external_data=False)


def onnx_captions(
    folder: Path, model: BlipForConditionalGeneration, pictures: Sequence[Image.Image], prompt: str = ""
) -> list[str]:
    """Captions as the decoder leaves them: the search is transformers' own, every number comes from onnxruntime.

    `model` lends its search, and no weight.
    """
    from onnxruntime import InferenceSession

    encoder, decoder = (InferenceSession(folder / name) for name in MODELS)
    processor, settings = BlipProcessor.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    settings.use_cache = False

    def logits(input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> Any:
        inputs = {"input_ids": input_ids.numpy(), "features": encoder_hidden_states.numpy()}
        return CausalLMOutputWithCrossAttentions(logits=torch.from_numpy(decoder.run(None, inputs)[0]))

    search, given = model.text_decoder, prompt_ids(model, processor.tokenizer, prompt, 1)
    search.forward = logits
    captions = []
    for picture in pictures:
        pixels = processor(images=picture, return_tensors="np").pixel_values
        features = torch.from_numpy(encoder.run(None, {"pixel_values": pixels})[0])
        ids = search.generate(input_ids=given, encoder_hidden_states=features, generation_config=settings)
        captions += decode_captions(processor.tokenizer, ids, prompt, detokenize=False)
    return captions
