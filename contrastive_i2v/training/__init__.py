"""Fine-tuning: config and recipes, the trainer, exact checkpoints, previews, and the shipped tiny base."""
