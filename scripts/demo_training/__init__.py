"""Parts of the demo model's training: data, tokenizer, fake quantization, loop, check and checkpoint."""
