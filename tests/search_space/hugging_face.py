"""A Hugging Face configuration of one of our shapes."""

from transformers import Qwen3Config

from search_space.transformer import Shape
from tests.search_space.cases import VOCAB

__all__ = ["config"]


def config(shape: Shape, vocab: int = VOCAB) -> Qwen3Config:
    out = Qwen3Config(
        vocab_size=vocab,
        hidden_size=shape.width,
        intermediate_size=shape.feedforward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        max_position_embeddings=65_536,
        tie_word_embeddings=shape.tied_head,
    )
    out._attn_implementation = "eager"  # takes any mask, and adds up in the plainest order
    return out
