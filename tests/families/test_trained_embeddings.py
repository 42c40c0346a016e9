"""Word embeddings of every family are trained with what is tied to them, and load with plain PEFT.

pytest tests/families/test_trained_embeddings.py
"""

import copy

import numpy as np
import pytest
import tiny_bases
import torch
from peft import PeftModel
from test_families import batch_of

from medcap.data.captions import TokenizedCaptions
from medcap.modeling.families import family_of
from medcap.modeling.lora import add_lora
from medcap.modeling.trained_modules import find_modules
from medcap.modeling.untrained import untrained_warning


@pytest.mark.parametrize("name", tiny_bases.MAKERS)
def test_gradient_is_autograds_and_the_saved_adapter_has_the_same_loss(name, tmp_path):
    family = tiny_bases.loaded(name)
    batch = batch_of(family)
    plain = copy.deepcopy(family.base).requires_grad_(False)
    plain.get_input_embeddings().weight.requires_grad_(True)
    family_of(plain, family.processor).loss(plain, batch, None, None).backward()
    base, fresh = copy.deepcopy(family.base), copy.deepcopy(family.base)
    (embeddings,) = (key for key, module in base.named_modules() if module is base.get_input_embeddings())
    model = add_lora(base, targets="attention", r=2, alpha=4, dropout=0.0, options={"modules_to_save": [embeddings]})
    loss = family_of(base, family.processor).loss(model.eval(), batch, None, None)
    loss.backward()
    weight = base.get_input_embeddings().weight
    torch.testing.assert_close(weight.grad, plain.get_input_embeddings().weight.grad, atol=1e-5, rtol=1e-4)
    torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5).step()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    with torch.no_grad():
        expected = family_of(base, family.processor).loss(model, batch, None, None)
        actual = family_of(fresh, family.processor).loss(loaded, batch, None, None)
    assert (expected - loss).abs() > 1e-4
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", tiny_bases.MAKERS)
def test_the_name_in_the_warning_of_untrained_embeddings_is_that_of_the_embeddings(name):
    base = copy.deepcopy(tiny_bases.loaded(name).base).requires_grad_(False)
    base.get_input_embeddings().weight.fill_(1)
    line = untrained_warning(base, TokenizedCaptions([np.array([5], np.int32)], 1))
    short = line.rpartition("[")[2].removesuffix("]")
    assert base.get_submodule(find_modules(base, [short], [])[0]) is base.get_input_embeddings()
