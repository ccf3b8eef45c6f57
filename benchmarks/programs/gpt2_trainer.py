"""Training of GPT-2 with the Trainer of transformers: accumulation, checkpointing and evaluation."""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_embd=128, n_layer=6, n_head=4, vocab_size=1000))
texts = [{"input_ids": (ids := torch.randint(1000, (64,))), "labels": ids} for _ in range(64)]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=4,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=texts, eval_dataset=texts[:8]).train()
