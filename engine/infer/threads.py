"""Who computes with how many threads."""

import torch


def work_alone() -> None:
    """PyTorch's calls in this thread get no help from others, as those of the engine do.

    Each thread that once had help keeps its helpers. When there are more of those than cores, GNU's
    OpenMP lets none of them wait for work awake, and an engine on a CPU takes half as long again.
    """
    torch.set_num_threads(1)
