"""LoRA targets by role, for models whose layers have the usual names of transformers."""

from __future__ import annotations

# names of layers inside a module whose name has "attn" or "attention"; c_attn, qkv and in_proj hold several of them
_INSIDE = r"[\w.]*\.\d+\.[\w.]*(?i:attn|attention)[\w.]*\."
_JOINT = "c_attn|qkv|query_key_value|Wqkv|in_proj"
_QUERY = "query|q_proj|q_lin|q_attn|q|wq"
_KEY = "key|k_proj|k_lin|k|wk"
_VALUE = "value|v_proj|v_lin|v|wv"
_OUTPUT = "dense|o_proj|out_proj|out_lin|c_proj|projection_layer|projection|proj|o|wo"
_LAYER = r"[\w.]*\.\d+\.[\w.]+"  # any layer in a numbered block: not embeddings, projector and head


# what the keys of `Family.targets` mean
_FROZEN = "; the vision encoder is frozen"
ROLES = {
    "query-key": f"query and key of all attention layers of the decoder{_FROZEN}",
    "query-value": f"query and value of all attention layers of the decoder{_FROZEN}",
    "attention": f"all attention layers of the decoder{_FROZEN}",
    "text": f"all linear layers of the decoder's blocks{_FROZEN}",
    "text-and-vision-attention": "all attention layers of the decoder and of the vision encoder",
    "all-linear": "all linear layers of the blocks of decoder and vision encoder",
}


def role_targets(decoder: str, vision_encoder: str) -> dict[str, str]:
    """Return regular expressions for complete names of linear layers by role.

    Args:
        decoder: Regular expression for the start of the names of the decoder's modules.
        vision_encoder: The same for the vision encoder.

    Returns:
        query-key, query-value, attention, text (all linear layers of the decoder's blocks), text-and-vision-attention,
        and all-linear (of the blocks of both). A layer that computes query, key and value together counts as each.
    """
    attention = f"{_INSIDE}({_JOINT}|{_QUERY}|{_KEY}|{_VALUE}|{_OUTPUT})"
    return {
        "query-key": f"({decoder}){_INSIDE}({_JOINT}|{_QUERY}|{_KEY})",
        "query-value": f"({decoder}){_INSIDE}({_JOINT}|{_QUERY}|{_VALUE})",
        "attention": f"({decoder}){attention}",
        "text": f"({decoder}){_LAYER}",
        "text-and-vision-attention": f"({decoder}|{vision_encoder}){attention}",
        "all-linear": f"({decoder}|{vision_encoder}){_LAYER}",
    }
