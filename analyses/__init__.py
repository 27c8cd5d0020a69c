"""Questions about checkpoints: one question, one module, one command (``python -m analyses`` lists them)."""
