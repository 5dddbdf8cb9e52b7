"""What makes the tiny base model: its world, its tasks, its tokenizer, its network and its exam."""
