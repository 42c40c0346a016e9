"""The same training and evaluation on 1, 2 and 3 processes (gloo), for tests/training/test_processes.py.

    python tests/training/processes.py BASE OUT        writes OUT/WORLD-RANK.pt

It is a separate program because it forks after the imports and before anything is computed.
"""

import os
import socket
import sys
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image
from test_trainer import CAPTIONS as EIGHT
from torch import multiprocessing
from transformers import TrainerCallback

from medcap.data.augmentation import Augmentation
from medcap.data.captions import CaptionCollator
from medcap.data.images import to_tensor, with_pixel_values
from medcap.modeling.families import family_of
from medcap.modeling.load import load_base
from medcap.modeling.lora import add_lora
from medcap.recipe import CaptionTrainingArguments
from medcap.recipe.groups import ScstArguments
from medcap.training.callbacks import EpochViews
from medcap.training.scst import ScstTrainer
from medcap.training.trainer import CaptionTrainer

# 3 to 22 tokens: the parts of a batch have different numbers of labels
CAPTIONS = (*EIGHT, "Mass.", "Plain radiograph of the abdomen of a woman.")
# micro-batch size and accumulation for each number of processes: 8 or 9 of 10 rows per step
STEPS = {
    1: {"8": (8, 1), "8, accumulated": (2, 4), "9": (9, 1)},
    2: {"8": (4, 1), "8, accumulated": (2, 2)},
    3: {"9": (3, 1)},
}


class Gradients(TrainerCallback):
    """Stores the gradient of every step as one vector."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [weight.grad.flatten() for _, weight in sorted(model.named_parameters()) if weight.requires_grad]
        self.steps.append(torch.cat(gradients).clone())


def rows_of(count):
    pixels = torch.randn(len(CAPTIONS), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [
        {"image_id": f"i{row}", "pixel_values": pixels[row], "caption": caption}
        for row, caption in enumerate(CAPTIONS[:count])
    ]


def augmented_rows():
    """Images with two views each, of which each epoch has another."""
    augmentation = Augmentation("strong", 2, seed=0)
    noise = torch.randint(0, 256, (len(CAPTIONS), 32, 32, 3), generator=torch.Generator().manual_seed(0))
    columns = {
        "image_id": [f"i{row}" for row in range(len(CAPTIONS))],
        "image": [Image.fromarray(pixels.numpy().astype("uint8")) for pixels in noise],
        "caption": CAPTIONS,
    }
    return with_pixel_values(Dataset.from_dict(columns), to_tensor, None, augmentation), EpochViews(augmentation)


def trainer_of(base, out, callbacks=(), compute_metrics=None, make=CaptionTrainer, **settings):
    model, processor = load_base(base)
    torch.manual_seed(0)
    adapted = add_lora(model, targets="text", r=4, alpha=8, dropout=0.0)
    arguments = CaptionTrainingArguments(
        output_dir=str(out / "run"), use_cpu=True, disable_tqdm=True, num_train_epochs=2, optim="sgd", seed=3,
        learning_rate=0.05, lr_scheduler_type="constant", max_grad_norm=0.0, logging_steps=1, eval_strategy="no",
        save_strategy="no", load_best_model_at_end=False, **settings,
    )  # fmt: skip
    rows, views = augmented_rows()
    return make(
        model=adapted,
        args=arguments,
        generation_config=family_of(model).make_generation_config(num_beams=1, max_new_tokens=6),
        train_dataset=rows,
        data_collator=CaptionCollator(processor.tokenizer, family_of(model).first_token_id, 64),
        processing_class=processor,
        callbacks=[*callbacks, views],
        compute_metrics=compute_metrics,
    )


def trained(base, out, batch, accumulated, sampling):
    """Train two epochs; return loss, gradient and norm of every step."""
    gradients = Gradients()
    trainer = trainer_of(
        base, out, [gradients], per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated,
        train_sampling_strategy=sampling,
    )  # fmt: skip
    trainer.train()
    log = [line for line in trainer.state.log_history if "loss" in line]
    meter = trainer.monitor.since_evaluation
    return {
        "counted": (meter.steps, meter.images, int(meter.tokens)),
        "loss": [line["loss"] for line in log],
        "norm": [line["grad_norm"] for line in log],
        "gradients": torch.stack(gradients.steps),
    }


def sampled(base, out, batch):
    """Train two epochs with sampled captions; return the logged rewards and the gradient of every step."""
    train = {"image_id": range(len(CAPTIONS)), "caption": CAPTIONS}
    gradients, scst = Gradients(), ScstArguments(loss="scst", scst_samples=3, scst_reward={"rouge_l": 1.0})
    make = partial(ScstTrainer, scst=scst, train=train)
    trainer = trainer_of(
        base, out, [gradients], make=make, per_device_train_batch_size=batch, train_sampling_strategy="random"
    )
    trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    return {"rewards": rewards, "gradients": torch.stack(gradients.steps)}


def evaluated(base, out, images, batch):
    """Evaluate; return what this process scored, if anything, and its metrics."""
    scored = []

    def score(evaluated):
        scored.append((evaluated.label_ids.tolist(), evaluated.predictions.tolist()))
        return {"images": float(len(evaluated.label_ids))}

    trainer = trainer_of(base, out, compute_metrics=score, per_device_eval_batch_size=batch)
    metrics = trainer.evaluate(rows_of(images))
    return {"scored": scored, "loss": metrics["eval_loss"], "images": metrics["eval_images"]}


def work(rank, world, port, base, out):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    results = {
        (name, sampling): trained(base, out, *split, sampling)
        for name, split in STEPS[world].items()
        for sampling in ("group_by_length", "random")
    }
    results |= {images: evaluated(base, out, images, batch=2) for images in (10, 2)}
    if world < 3:
        results["scst"] = sampled(base, out, 8 // world)
    torch.save(results, out / f"{world}-{rank}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def main(base, out):
    running = [
        multiprocessing.start_processes(
            work, (world, free_port(), base, out), nprocs=world, join=False, start_method="fork"
        )
        for world in STEPS
    ]
    for processes in running:
        while not processes.join():
            pass


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
