"""One of two processes (gloo): train three times, the last two with too little memory, and print the results.

Started by test_micro_batches.py, with RANK and WORLD_SIZE in the environment.
"""

import json
import sys
from pathlib import Path

import torch
from conftest import tiny_blip, tiny_tokenizer
from test_micro_batches import OutOfMemory
from test_trainer import losses, rows_of
from transformers import BlipImageProcessor, BlipProcessor

from medcap.data.captions import CaptionCollator
from medcap.modeling.blip_fast import prepare_blip
from medcap.modeling.families import family_of
from medcap.modeling.lora import add_lora
from medcap.recipe import CaptionTrainingArguments
from medcap.training.trainer import CaptionTrainer

folder, results = Path(sys.argv[1]), []
for where in ("never", "forward", "backward"):
    args = CaptionTrainingArguments(
        output_dir=str(folder / "run"), use_cpu=True, disable_tqdm=True, max_steps=3, per_device_train_batch_size=4,
        learning_rate=0.01, logging_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False,
        train_sampling_strategy="random", ddp_backend="gloo", warmup_steps=1, max_grad_norm=0.5,
    )  # fmt: skip
    own = folder / f"{args.process_index}"
    own.mkdir(exist_ok=True)
    tokenizer = tiny_tokenizer(own)
    model, processor = tiny_blip(tokenizer), BlipProcessor(BlipImageProcessor(), tokenizer)
    prepare_blip(model, processor)
    torch.manual_seed(0)
    trainer = CaptionTrainer(
        model=add_lora(model, targets="text", r=4, alpha=8, dropout=0.0),
        args=args,
        generation_config=family_of(model).make_generation_config(num_beams=1, max_new_tokens=4),
        train_dataset=rows_of(),
        data_collator=CaptionCollator(tokenizer, family_of(model).first_token_id, 64),
        processing_class=processor,
    )
    limited = OutOfMemory(trainer, rows=2 if args.process_index == 1 else 8, where=where)
    trainer.train()
    norms = [weight.detach().norm().item() for weight in trainer.model.parameters() if weight.requires_grad]
    results.append({"weights": norms, "losses": losses(trainer), "tried": limited.tried})
print(json.dumps(results))
torch.distributed.destroy_process_group()
