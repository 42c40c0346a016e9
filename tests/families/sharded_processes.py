"""One step and captions of every family with and without FSDP2 on two processes (gloo), for test_sharding.py.

python tests/families/sharded_processes.py OUT NAME=BASE ...      writes OUT/RANK.pt
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import no_video
import torch
from peft import get_peft_model_state_dict
from PIL import Image
from processes import free_port
from safetensors.torch import load_file
from torch import multiprocessing, nn
from torch.distributed import destroy_process_group, device_mesh, init_process_group
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from medcap.modeling.families import family_of
from medcap.modeling.feature_cache import FeatureEncoder
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora
from medcap.modeling.lora_init import save_weights
from medcap.training.sharding import call_within

# of each process
CAPTIONS = (("mass", "normal chest"), ("an old fracture of the left rib with a large callus", "axial view"))
MAX_NEW_TOKENS = (12, 5)
PROMPT = "showing"


def batches(family):
    """Return the batch of each process."""
    pixels, generator = family.pixels(), torch.Generator().manual_seed(0)
    collate, made = family.collator(64, PROMPT), []
    for captions in CAPTIONS:
        noise = [torch.randint(0, 256, (5, 4, 3), dtype=torch.uint8, generator=generator) for _ in captions]
        images = [pixels(Image.fromarray(values.numpy()).resize((48, 56))) for values in noise]
        rows = [{"pixel_values": image, "caption": text} for image, text in zip(images, captions, strict=True)]
        made.append(collate([{**row, "row": index} for index, row in enumerate(rows)]))
    return made


def adapted(base):
    """Return the family and the model with an adapter that changes captions."""
    family = family_of(*load_base(base))
    torch.manual_seed(0)
    model = add_lora(family.base, targets="text", r=4, alpha=8, dropout=0.0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    return family, model.eval()


def step(family, model, rank):
    """Train one step; return the loss, and the ids that the model generated before it."""
    batch = batches(family)[rank]
    features = None if family.feature_obstacle() else call_within(model, FeatureEncoder(family), batch)
    loss = family.loss(model, batch, features, 4)
    config = family.make_generation_config(num_beams=1, max_new_tokens=MAX_NEW_TOKENS[rank])
    with torch.no_grad():
        ids = call_within(model, family.generate, batch, features, config, PROMPT)
    loss.backward()
    torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], 0.05).step()
    return loss.detach(), ids


def alone(base, rank):
    """Return loss and ids of this process's batch, and the adapter after a step with both batches."""
    family, model = adapted(base)
    result = step(family, model, rank)
    family, model = adapted(base)
    for batch in batches(family):
        features = None if family.feature_obstacle() else FeatureEncoder(family)(batch)
        (family.loss(model, batch, features, 4) / 2).backward()
    torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], 0.05).step()
    return *result, get_peft_model_state_dict(model)


def sharded(base, rank, folder):
    """Return the same with FSDP2, and on the main process whether the adapter was saved exactly before the step."""
    family, model = adapted(base)
    expected = {name: weight.clone() for name, weight in get_peft_model_state_dict(model).items()}
    mesh = device_mesh.init_device_mesh("cpu", (len(CAPTIONS),))
    decoder = family.base.text_decoder if family.base.config.model_type == "blip" else family.base.get_decoder()
    for layer in layers(decoder):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    family.is_sharded = True
    saved = save(model, rank, folder / "before")
    is_exact = rank or (saved.keys() == expected.keys() and all(saved[k].equal(expected[k]) for k in saved))
    loss, ids = step(family, model, rank)
    return loss, ids, save(model, rank, folder / "after"), is_exact


def layers(module):
    """Yield the elements of the outermost module lists."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else layers(child)


def save(model, rank, folder):
    """Save the adapter as accelerate gathers it; return the file's weights on the main process."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if rank:
        return None
    save_weights(model, folder, {}, state)
    return load_file(folder / "adapter_model.safetensors")


def work(rank, world, port, bases, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    no_video.install()
    plain = {name: alone(base, rank) for name, base in bases}
    init_process_group("gloo", timeout=timedelta(minutes=5))  # of a process that waits for the other
    results = {name: (plain[name], sharded(base, rank, out / name)) for name, base in bases}
    torch.save(results, out / f"{rank}.pt")
    destroy_process_group()


if __name__ == "__main__":
    folder, given = Path(sys.argv[1]), [text.split("=") for text in sys.argv[2:]]
    multiprocessing.start_processes(
        work, (len(CAPTIONS), free_port(), given, folder), nprocs=len(CAPTIONS), start_method="fork"
    )
