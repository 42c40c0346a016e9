"""Sampled tokens have the probabilities of the model and do not depend on the batch.

pytest tests/modeling/test_sampling.py
"""

import pytest
import torch

from medcap.modeling.families import family_of
from medcap.modeling.sampling import TokenSampler, truncated


def frequencies(logits, **settings):
    """Return how often each token was drawn for 20,000 rows of the same logits."""
    sampler = TokenSampler([(row,) for row in range(20_000)], 1, **settings)
    return sampler.choose(logits.expand(20_000, -1), 0).exp().mean(0)


def test_tokens_have_the_probabilities_of_temperature_and_top_k():
    logits = torch.tensor([0.3, -1.0, 2.0, 1.0])
    assert frequencies(logits) == pytest.approx(logits.softmax(0), abs=0.02)
    assert frequencies(logits, temperature=2.0) == pytest.approx((logits / 2).softmax(0), abs=0.02)
    kept = torch.tensor([-torch.inf, -torch.inf, 2.0, 1.0]).softmax(0)
    assert frequencies(logits, top_k=2) == pytest.approx(kept, abs=0.02)


def test_a_sampled_token_keeps_a_finite_probability():
    """A token at the edge of the k largest may fall out by rounding in the pass that computes the gradient."""
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    assert truncated(logits, 1.0, 1).tolist() == [[3.0, -torch.inf, -torch.inf]]
    assert truncated(logits, 1.0, 1, torch.tensor([2])).tolist() == [[3.0, -torch.inf, 1.0]]


@pytest.mark.parametrize("model_code", ["fast", "plain"])
def test_captions_do_not_depend_on_the_batch(blip, model_code):
    """Rows of a batch, alone and in another order; medcap's search and that of transformers agree."""
    base, processor = blip
    base.model_code = model_code
    family = family_of(base, processor)
    features = family.encode(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    config, keys = family.make_generation_config(num_beams=1, max_new_tokens=12), [(0, 0, row, 1) for row in range(4)]

    def sampled(rows):
        ids = family.generate({}, features[rows], config, "", TokenSampler([keys[row] for row in rows], 12, 0.7, 20))
        return [processor.tokenizer.decode(row, skip_special_tokens=True) for row in ids]

    together = sampled([0, 1, 2, 3])
    assert len(set(together)) == 4
    assert sampled([2, 0]) == [together[2], together[0]]
    assert sampled([3]) == [together[3]]
    base.model_code = "plain"
    assert sampled([0, 1, 2, 3]) == together
