"""Two training steps of every family in one process and in two (gloo), for tests/families/test_family_processes.py.

python tests/families/family_processes.py OUT NAME=BASE[=4bit|=full] ...      writes OUT/WORLD-RANK.pt
"""

import os
import sys
from pathlib import Path

import no_video
import torch
from PIL import Image
from processes import Gradients, free_port
from torch import multiprocessing

from medcap.modeling.families import family_of
from medcap.modeling.full import train_all
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora
from medcap.recipe import CaptionTrainingArguments
from medcap.training.trainer import CaptionTrainer

# 1 to 9 words: the halves of a batch have different numbers of labels
CAPTIONS = ("mass", "an old fracture of the left rib with a large callus", "normal chest", "axial view of the abdomen")
IMAGES_PER_STEP = 4


def trained(base, kind, world, out):
    """Train an adapter, or the decoder itself (kind "full"), for two steps; return their losses and gradients."""
    model, processor = load_base(base, quantization=kind if kind == "4bit" else "none")
    family, gradients = family_of(model, processor), Gradients()
    pixels, generator = family.pixels(), torch.Generator().manual_seed(0)
    noise = [torch.randint(0, 256, (5, 4, 3), dtype=torch.uint8, generator=generator) for _ in CAPTIONS]
    images = [Image.fromarray(values.numpy()).resize((48, 56)) for values in noise]
    rows = [{"pixel_values": pixels(image), "caption": text} for image, text in zip(images, CAPTIONS, strict=True)]
    torch.manual_seed(0)
    is_full = kind == "full"
    trainer = CaptionTrainer(
        model=train_all(family, False) if is_full else add_lora(model, targets="text", r=4, alpha=8, dropout=0.0),
        args=CaptionTrainingArguments(
            output_dir=str(out / "run"), use_cpu=True, disable_tqdm=True, num_train_epochs=2, optim="sgd", seed=3,
            learning_rate=0.05, lr_scheduler_type="constant", max_grad_norm=0.0, logging_steps=1, eval_strategy="no",
            save_strategy="no", load_best_model_at_end=False, per_device_train_batch_size=IMAGES_PER_STEP // world,
            train_sampling_strategy="random",
        ),
        generation_config=family.make_generation_config(num_beams=1, max_new_tokens=6),
        train_dataset=rows,
        data_collator=family.collator(64, "showing"),
        processing_class=processor,
        callbacks=[gradients],
    )  # fmt: skip
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"loss": losses, "gradients": torch.stack(gradients.steps)}


def work(rank, world, port, bases, out):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    no_video.install()
    results = {}
    for name, base, *kind in bases:
        results[name] = trained(base, *(kind or ["lora"]), world, out)
    torch.save(results, out / f"{world}-{rank}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    folder, given = Path(sys.argv[1]), [text.split("=") for text in sys.argv[2:]]
    for count in (1, 2):
        multiprocessing.start_processes(work, (count, free_port(), given, folder), nprocs=count, start_method="fork")
