"""Training of BERT in a loop of accelerate, with gradient accumulation and clipping."""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

torch.manual_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = BertForSequenceClassification(
    BertConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4, vocab_size=1000)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
data = DataLoader(TensorDataset(torch.randint(1000, (64, 64)), torch.randint(2, (64,))), batch_size=4)
model, optimizer, data = accelerator.prepare(model, optimizer, data)
for ids, labels in data:
    with accelerator.accumulate(model):
        accelerator.backward(model(input_ids=ids, labels=labels).loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
