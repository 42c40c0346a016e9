"""medcap: BLIP with LoRA adapters on ROCOv2, from radiographs to a published captioner."""

__version__ = "0.1.0"
