"""What a job will take, before it runs: tokens, steps, parameters, memory, time. Torch-free."""
