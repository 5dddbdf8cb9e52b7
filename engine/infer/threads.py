"""Who computes with how many threads."""

import torch


def work_alone() -> None:
    """PyTorch's calls in this thread have no team of threads, as those of the engine have.

    A thread that once had a team keeps it. When there are more threads in teams than cores, GNU's
    OpenMP lets none of them wait for work awake, and an engine on a CPU takes half as long again.
    """
    torch.set_num_threads(1)
